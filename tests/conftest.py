"""New random numbers in every run, and the seed that reproduces them."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# In the environment, so that all processes of a run have the same.
SEED = int(os.environ.setdefault("FASTMETA_TEST_SEED", str(random.SystemRandom().randrange(2**31))))

settings.register_profile("untimed", deadline=None)  # other work may share the machine
settings.load_profile("untimed")


def pytest_report_header() -> str:
    return f"random inputs: FASTMETA_TEST_SEED={SEED} repeats them"


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Seeds each test by its name, independently of which others run."""
    seed = (SEED + zlib.crc32(request.node.nodeid.encode())) % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture(autouse=True)
def threads():
    """Restores the number of threads after each test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary working directory with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path
