"""Parts of a meta-batch, drawn without the others and equal to those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.data import ClassDataset, EpisodeSampler, Jitter, SineTasks
from fastmeta.data.task_source import SeededSource

Traceable = Callable[[Sequence[int]], ClassDataset]
TASKS = 7
JITTERS = [None, Jitter(flip=0.5), Jitter(shift=1, degrees=20, zoom=0.2, flip=0.5)]


def sources(traceable: Traceable, seed: int) -> list[SeededSource]:
    dataset = traceable([5, 6, 9, 5])
    samplers = [EpisodeSampler(dataset, 3, 1, 4, TASKS, seed, jitter=j) for j in JITTERS]
    sines = [{}, {"grid": (2, 5)}, {"outliers": 0.5}]
    return [*(SineTasks(TASKS, 3, 2, seed, **options) for options in sines), *samplers]


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 10**9), data=st.data())
def test_a_part_equals_that_of_the_whole_meta_batch(
    traceable: Traceable, seed: int, index: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, TASKS - 1))
    stop = data.draw(st.integers(start + 1, TASKS))
    for source in sources(traceable, seed):
        whole, part = source[index].part(start, stop), source.part(index, start, stop)
        names = ("support_x", "support_y", "query_x", "query_y")
        for name in names if whole.ids is None else (*names, "ids"):
            assert torch.equal(getattr(part, name), getattr(whole, name)), (source, name)


def test_only_the_part_is_gathered(traceable: Traceable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inputs = ClassDataset.inputs

    def counted(dataset: ClassDataset, index: torch.Tensor) -> Any:
        seen.append(len(index))
        return inputs(dataset, index)

    monkeypatch.setattr(ClassDataset, "inputs", counted)
    EpisodeSampler(traceable([5] * 4), 3, 1, 4, TASKS).part(0, 2, 4)
    assert seen == [2]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, TASKS + 1)])
def test_a_part_must_lie_in_the_meta_batch(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= start < stop <= {TASKS}; got {start} to {stop}"):
        SineTasks(TASKS, 3, 2).part(0, start, stop)
