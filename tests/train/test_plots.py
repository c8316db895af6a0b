"""Plots of runs: the truth of a sine task."""

from __future__ import annotations

import torch

from fastmeta.data import SineTasks
from fastmeta.train.plots import _dense


def test_the_sine_through_the_points_of_a_task():
    source = SineTasks(tasks=1, shots=5, queries=4, seed=3, amplitude=(2.0, 2.0), phase=(0.7, 0.7))
    task = source[0]
    dense = _dense(task)
    assert dense.query_x.shape == (1, 200, 1)
    assert torch.equal(dense.support_x, task.support_x)
    torch.testing.assert_close(
        dense.query_y, 2 * torch.sin(dense.query_x - 0.7), atol=1e-4, rtol=1e-4
    )
