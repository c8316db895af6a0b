"""Fresh random numbers in every run, and the seed to repeat one."""

from __future__ import annotations

import os
import random
import zlib

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
    """Each test has its own numbers, whichever others run."""
    seed = (SEED + zlib.crc32(request.node.nodeid.encode())) % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture(autouse=True)
def threads():
    """A test that changes the number of threads changes it for itself."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
