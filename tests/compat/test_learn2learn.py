"""Agreement with learn2learn: losses, tasks, networks and checkpoints."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from fastmeta.compat import learn2learn as l2l
from tests.compat.sampling import draws, fingerprint, models
from tests.compat.training_loops import LOOPS, STEPS, seed

SEED = 1  # of record.py


@pytest.mark.parametrize("loop", LOOPS)
def test_losses_match_the_recorded(loop: str, recorded: dict[str, Any]) -> None:
    seed(SEED)
    losses = LOOPS[loop](l2l, torch.float64)
    assert len(losses) == STEPS
    assert_close(losses, recorded["learn2learn"][loop], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # from learn2learn
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loop", LOOPS)
def test_losses_match_learn2learn(loop: str, dtype: torch.dtype, learn2learn: ModuleType) -> None:
    # Rounding errors may grow in float32, hence the fixed seed.
    number = SEED if dtype == torch.float32 else random.randrange(2**31)
    losses = []
    for library in (l2l, learn2learn):
        seed(number)
        losses.append(LOOPS[loop](library, dtype))
    assert_close(*losses, rtol=0, atol=1e-5)


def test_tasks_match_the_recorded(recorded: dict[str, Any]) -> None:
    assert draws(l2l, SEED) == recorded["draws"]


def test_tasks_match_learn2learn(learn2learn: ModuleType) -> None:
    number = random.randrange(2**31)
    assert draws(l2l, number) == draws(learn2learn, number)


def test_networks_match_the_recorded(recorded: dict[str, Any]) -> None:
    for name, model in models(l2l, SEED).items():
        found, expected = fingerprint(model), recorded["models"][name]
        assert list(found) == list(expected), name
        assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_checkpoints_load_both_ways(learn2learn: ModuleType) -> None:
    ours, theirs = models(l2l, 0), models(learn2learn, 1)
    for name in ours:
        theirs[name].load_state_dict(ours[name].state_dict())
        fresh = models(l2l, 2)[name]
        fresh.load_state_dict(theirs[name].state_dict())
        assert_close(fresh.state_dict(), ours[name].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 270.0])
def test_rotations_match_learn2learn(angle: float, learn2learn: ModuleType) -> None:
    data = l2l.data.MetaDataset(torch.utils.data.TensorDataset(torch.arange(3), torch.arange(3)))
    image, found = torch.randn(1, 6, 6), []
    for library in (l2l, learn2learn):
        torch.manual_seed(0)
        task = [library.data.DataDescription(0)]
        library.vision.transforms.RandomClassRotation(data, [angle])(task)
        found.append((task[0].transforms[0]((image, 1))[0], torch.rand(1)))
    assert_close(*found, rtol=0, atol=0)
