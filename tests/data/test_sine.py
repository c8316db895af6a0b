from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastmeta import TaskBatch
from fastmeta.data import SineTasks, TaskSource


def test_shapes_and_dtypes() -> None:
    batch = SineTasks(tasks=3, shots=5, queries=7)[0]
    assert batch.support_x.shape == batch.support_y.shape == (3, 5, 1)
    assert batch.query_x.shape == batch.query_y.shape == (3, 7, 1)
    for part in (batch.support_x, batch.support_y, batch.query_x, batch.query_y):
        assert part.dtype == torch.float32


def test_targets_are_one_sine_per_task() -> None:
    batch = SineTasks(tasks=16, shots=10, queries=40, seed=5)[3]
    amplitude, phase = amplitudes_and_phases(batch)
    assert amplitude.min() > 0.1
    assert amplitude.max() < 5
    assert phase.min() > 0
    assert phase.max() < math.pi
    assert amplitude.unique().numel() == phase.unique().numel() == 16


def amplitudes_and_phases(batch: TaskBatch) -> tuple[Tensor, Tensor]:
    x = torch.cat([batch.support_x, batch.query_x], dim=1).double()
    y = torch.cat([batch.support_y, batch.query_y], dim=1).double()
    # a sin(x - p) = (a cos p) sin x - (a sin p) cos x: linear in two numbers a task.
    basis = torch.cat([x.sin(), -x.cos()], dim=2)
    weights = torch.linalg.lstsq(basis, y).solution
    torch.testing.assert_close(basis @ weights, y, atol=1e-5, rtol=0)
    return weights.norm(dim=1).flatten(), torch.atan2(weights[:, 1], weights[:, 0]).flatten()


def test_tasks_of_a_grid_recur_with_other_points() -> None:
    sines = SineTasks(5, 10, 40, seed=2, amplitude=(1, 3), phase=(0.5, 2.5), grid=(3, 5))
    counts = torch.zeros(15)
    for i in range(40):
        batch = sines[i]
        ids = batch.ids.flatten()
        assert len(ids.unique()) == 5
        counts[ids] += 1
        amplitude, phase = amplitudes_and_phases(batch)
        torch.testing.assert_close(amplitude, 1.0 + (ids // 5).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(phase, 0.5 + 0.5 * (ids % 5).double(), atol=1e-4, rtol=0)
    assert counts.min() > 0
    assert counts.sum() == 200
    with pytest.raises(
        ValueError, match=r"at least as many combinations as .* tasks, 7; got 2 x 3"
    ):
        SineTasks(7, 1, 1, grid=(2, 3))
    with pytest.raises(ValueError, match=r"outliers must be 0 with a grid"):
        SineTasks(2, 1, 1, grid=(2, 3), outliers=0.1)


def test_a_share_of_the_tasks_has_another_amplitude() -> None:
    plain, noisy = (SineTasks(1000, 10, 40, seed=3, outliers=o)[0] for o in (0, 0.2))
    amplitude, phase = amplitudes_and_phases(noisy)
    usual = amplitude < 6
    assert 150 < (~usual).sum() < 250  # 4 standard deviations around 200
    assert amplitude[~usual].min() > 8
    assert amplitude[~usual].max() < 12
    expected = amplitudes_and_phases(plain)
    torch.testing.assert_close(phase, expected[1], atol=1e-3, rtol=0)
    torch.testing.assert_close(amplitude[usual], expected[0][usual], atol=1e-4, rtol=0)


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
