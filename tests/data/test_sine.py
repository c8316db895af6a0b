from __future__ import annotations

import math

import pytest
import torch

from fastmeta.data import SineTasks, TaskSource


def test_shapes_and_dtypes() -> None:
    batch = SineTasks(tasks=3, shots=5, queries=7)[0]
    assert batch.support_x.shape == batch.support_y.shape == (3, 5, 1)
    assert batch.query_x.shape == batch.query_y.shape == (3, 7, 1)
    for part in (batch.support_x, batch.support_y, batch.query_x, batch.query_y):
        assert part.dtype == torch.float32


def test_targets_are_one_sine_per_task() -> None:
    batch = SineTasks(tasks=16, shots=10, queries=40, seed=5)[3]
    x = torch.cat([batch.support_x, batch.query_x], dim=1).double()
    y = torch.cat([batch.support_y, batch.query_y], dim=1).double()
    # a sin(x - p) = (a cos p) sin x - (a sin p) cos x: linear in two numbers a task.
    basis = torch.cat([x.sin(), -x.cos()], dim=2)
    weights = torch.linalg.lstsq(basis, y).solution
    torch.testing.assert_close(basis @ weights, y, atol=1e-5, rtol=0)
    amplitude = weights.norm(dim=1).flatten()
    phase = torch.atan2(weights[:, 1], weights[:, 0]).flatten()
    assert amplitude.min() > 0.1
    assert amplitude.max() < 5
    assert phase.min() > 0
    assert phase.max() < math.pi
    assert amplitude.unique().numel() == phase.unique().numel() == 16


def test_ranges_are_covered() -> None:
    sines = SineTasks(2000, 5, 5, amplitude=(2.0, 2.0), phase=(0.0, 0.0), x=(-1.0, 3.0))
    batch = sines[0]
    torch.testing.assert_close(batch.support_y, 2 * batch.support_x.sin())
    assert -1 <= batch.support_x.min() < -0.99
    assert 2.99 < batch.support_x.max() <= 3


def test_a_batch_depends_only_on_seed_and_index() -> None:
    first, second = SineTasks(4, 5, 5, seed=9), SineTasks(4, 5, 5, seed=9)
    expected = [first[i].query_y for i in range(4)]
    for i in reversed(range(4)):
        assert torch.equal(second[i].query_y, expected[i])
    assert not torch.equal(expected[0], expected[1])
    assert not torch.equal(expected[0], SineTasks(4, 5, 5, seed=10)[0].query_y)


def test_sines_are_a_task_source_without_ways() -> None:
    source: TaskSource = SineTasks(1, 1, 1)
    assert source.ways is None


@pytest.mark.parametrize("name", ["amplitude", "phase", "x"])
@pytest.mark.parametrize("bad", [(2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_invalid_ranges_are_refused(name: str, bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be two finite numbers"):
        SineTasks(1, 1, 1, **{name: bad})


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tasks must be an integer of at least 1, got 0"):
        SineTasks(tasks=0, shots=1, queries=1)
