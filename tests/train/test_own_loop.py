"""Runs that are killed in a reverse sweep, and checkpoints of users' own loops."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from fastmeta.train import CheckpointError, Checkpoints
from fastmeta.train.checkpoint import (
    FORMAT,
    OWN_LOOP,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from tests.train import killed_sweep

SCRIPT = Path(killed_sweep.__file__)
# Inner steps that are repeated in an outer step: of a window, and of two tasks.
REPEATED = {"own": killed_sweep.INNER_STEPS, "learner": 2 * 8}


@pytest.mark.parametrize("loop", REPEATED)
def test_a_run_that_is_killed_in_a_sweep_continues_with_the_same_bits(
    loop: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    half = REPEATED[loop] // 2
    # In the third outer step's sweep, and, resumed, in that of the second one from there.
    kills = [2 * REPEATED[loop] + half, REPEATED[loop] + half]
    jobs = [(whole, 0), *((killed, kill) for kill in kills), (killed, 0)]
    command = [sys.executable, str(SCRIPT), loop, *(str(part) for job in jobs for part in job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["0", "6", "-9", "2", "-9", "3", "0", "6"], done.stderr
    form = OWN_LOOP if loop == "own" else FORMAT
    own, expected = (
        load_checkpoint(checkpoints(folder)[-1], form=form) for folder in (killed, whole)
    )
    for name in ("state", "generators") if loop == "own" else ("learner", "scheduler", "rng"):
        assert_same(own[name], expected[name])


def assert_same(own: Any, expected: Any) -> None:
    """Bit for bit."""
    (mine, structure), (its, other) = tree_flatten(own), tree_flatten(expected)
    assert structure == other
    for a, b in zip(mine, its, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_generators_and_state(tmp_path: Path) -> None:
    saving = Checkpoints(tmp_path / "run", keep=2)
    assert saving.load() == (0, None)
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    state = {"p": parameter, "more": (1, [2.5, "x", None, True]), "opt": optimizer.state_dict()}
    for step in range(4):
        saving.save(step, state)
    assert [p.name for p in checkpoints(saving.folder)] == ["step-00000002.pt", "step-00000003.pt"]
    drawn = torch.rand(2), np.random.randn(), random.random()
    step, found = Checkpoints(tmp_path / "run").load()
    assert step == 3
    assert_same(found["p"].detach(), parameter.detach())
    assert found["more"] == state["more"]
    optimizer.load_state_dict(found["opt"])
    again = torch.rand(2), np.random.randn(), random.random()
    assert_same(again, drawn)


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    saving = Checkpoints(tmp_path)
    for step in (1, 2):
        saving.save(step, {"step": step})
    (tmp_path / ".step-00000003.pt.0.tmp").write_bytes(b"part")  # of a process that was killed
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-40])
    with pytest.warns(RuntimeWarning, match="is damaged and was renamed"):
        assert saving.load() == (1, {"step": 1})
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    class Pair(NamedTuple):
        a: int

    saving = Checkpoints(tmp_path)
    cases = [
        ({"net": torch.nn.Linear(1, 1)}, r"state\['net'\] is Linear; expected tensors"),
        ([1, Pair(2)], r"state\[1\] is Pair"),
        ({"x": np.float64(1)}, r"state\['x'\] is float64"),
        ({(1, 2): {3}}, r"state\[\(1, 2\)\] is set"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            saving.save(1, state)
    with pytest.raises(ValueError, match="step must be an integer of at least 0"):
        saving.save(-1, {})
    with pytest.raises(ValueError, match="keep must be"):
        Checkpoints(tmp_path, keep=0)
    assert not list(tmp_path.iterdir())


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step-00000001.pt", {"config": {}})
    with pytest.raises(CheckpointError, match="found one of fastmeta train"):
        Checkpoints(tmp_path).load()
    Checkpoints(tmp_path).save(2, None)
    with pytest.raises(CheckpointError, match=r"found one of fastmeta.train.Checkpoints"):
        load_checkpoint(tmp_path / "step-00000002.pt")
