from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def isolated_runs(working_directory: Path) -> None:
    """Runs are written to a temporary folder."""


@pytest.fixture
def sine() -> dict[str, Any]:
    """Options of a run that takes about a second."""
    return {
        "dataset": "sine",
        "method": "gsl",
        "steps": 12,
        "meta_batch": 4,
        "hidden": [8],
        "val_every": 4,
        "val_tasks": 10,
        "test_tasks": 30,
        "log_every": 3,
        "checkpoint_every": 5,
        "untrained_inner_steps": 3,
        "plots": False,
        "lr": 0.01,
        "out": "run",
    }
