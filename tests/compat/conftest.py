from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    """Recorded results of the original libraries, see record.py."""
    return json.loads((Path(__file__).parent / "recorded.json").read_text())


def _installed(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the library and its imports
        return pytest.importorskip(name, reason=f"{name} is not installed; see benchmarks/rivals")


@pytest.fixture(scope="session")
def learn2learn() -> ModuleType:
    return _installed("learn2learn")


@pytest.fixture(scope="session")
def higher() -> ModuleType:
    return _installed("higher")


@pytest.fixture(scope="session")
def torchopt() -> ModuleType:
    return _installed("torchopt")
