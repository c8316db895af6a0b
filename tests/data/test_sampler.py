from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.data import ClassDataset, EpisodeSampler, TaskSource, TooFewError
from fastmeta.tasks import TaskBatch

Traceable = Callable[[Sequence[int]], ClassDataset]


def identities(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and classes that the pixels of traceable images encode, ``(T, n)`` each."""
    pixels = (x * 255).round().long().flatten(2)
    return pixels[..., 0] * 256 + pixels[..., 1], pixels[..., 2] * 256 + pixels[..., 3]


def same(a: TaskBatch, b: TaskBatch) -> bool:
    names = ("support_x", "support_y", "query_x", "query_y")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@given(st.data())
def test_every_task_is_a_valid_episode(traceable: Traceable, data: st.DataObject) -> None:
    shots, queries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    size = st.integers(shots + queries, shots + queries + 5)
    dataset = traceable(data.draw(st.lists(size, min_size=1, max_size=9)))
    ways = data.draw(st.integers(1, dataset.num_classes))
    tasks, seed = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2**64 - 1))
    sampler = EpisodeSampler(dataset, ways, shots, queries, tasks, seed=seed)
    batch = sampler[data.draw(st.integers(0, 10**6))]

    assert batch.support_x.shape == (tasks, ways * shots, 1, 2, 2)
    assert batch.query_x.shape == (tasks, ways * queries, 1, 2, 2)
    assert batch.support_x.dtype == batch.query_x.dtype == torch.float32
    assert batch.support_y.dtype == batch.query_y.dtype == torch.int64
    for y, examples in ((batch.support_y, shots), (batch.query_y, queries)):
        assert y.tolist() == [list(range(ways)) * examples] * tasks
    rows, classes = identities(torch.cat([batch.support_x, batch.query_x], dim=1))
    labels = torch.cat([batch.support_y, batch.query_y], dim=1)
    for t in range(tasks):
        assert rows[t].unique().numel() == ways * (shots + queries)
        assert torch.equal(dataset.labels[rows[t]], classes[t])
        assert torch.equal(batch.ids[t][labels[t]], classes[t])
        pairs = set(zip(labels[t].tolist(), classes[t].tolist(), strict=True))
        assert len(pairs) == ways == len({c for _, c in pairs})


def test_a_batch_depends_only_on_seed_and_index(traceable: Traceable) -> None:
    def make(seed: int) -> EpisodeSampler:
        return EpisodeSampler(traceable([20] * 30), 5, 1, 5, tasks=4, seed=seed)

    first = make(seed=1)
    in_order = [first[i] for i in range(6)]
    second = make(seed=1)
    backwards = [second[i] for i in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(in_order, backwards, strict=True))
    assert all(same(a, b) for a, b in zip(in_order, make(seed=1), strict=False))
    assert not same(in_order[0], in_order[1])
    assert not same(in_order[0], make(seed=2)[0])


def test_tasks_of_a_batch_differ(traceable: Traceable) -> None:
    batch = EpisodeSampler(traceable([20] * 30), 5, 1, 5, tasks=8)[0]
    rows, _ = identities(batch.query_x)
    assert len({tuple(task.tolist()) for task in rows}) == 8


def test_classes_and_images_are_drawn_evenly(traceable: Traceable) -> None:
    tasks, ways, num_classes, size = 4000, 5, 20, 8
    dataset = traceable([size] * num_classes)
    batch = EpisodeSampler(dataset, ways, 1, 1, tasks)[0]
    rows, classes = identities(batch.support_x)
    by_label = torch.stack([classes[:, way].bincount(minlength=num_classes) for way in range(ways)])
    expected = tasks / num_classes  # of each class at each label
    assert (by_label - expected).abs().max() < 5 * expected**0.5
    by_image = rows.flatten().bincount(minlength=len(dataset))
    expected = tasks * ways / len(dataset)
    assert (by_image - expected).abs().max() < 5 * expected**0.5


def test_iteration_ends_with_the_length(traceable: Traceable) -> None:
    sampler = EpisodeSampler(traceable([4] * 3), 2, 1, 1, tasks=2, length=3)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 3
    assert all(same(batch, sampler[i]) for i, batch in enumerate(batches))
    with pytest.raises(IndexError, match="less than the length, 3; got 3"):
        sampler[3]
    with pytest.raises(IndexError, match="at least 0"):
        sampler[-1]


def test_iteration_without_length_does_not_end(traceable: Traceable) -> None:
    sampler = EpisodeSampler(traceable([4] * 3), 2, 1, 1, tasks=2)
    assert len(list(islice(sampler, 50))) == 50
    with pytest.raises(TypeError, match="length="):
        len(sampler)
    with pytest.raises(IndexError, match="at least 0; got -1"):
        sampler[-1]


def test_more_ways_than_classes_are_refused(traceable: Traceable) -> None:
    with pytest.raises(ValueError, match=r"there are 3 classes of 9 examples\. What fits: ways=3"):
        EpisodeSampler(traceable([9, 9, 9]), 4, 1, 1, tasks=1)


def test_more_examples_than_images_are_refused(traceable: Traceable) -> None:
    message = (
        r"3 classes of at least 5 \+ 6 = 11 examples .*; there are 3 classes of 10 to 12 examples, "
        r"2 of them of at least 11. What fits: queries=5 or ways=2."
    )
    with pytest.raises(TooFewError, match=message):
        EpisodeSampler(traceable([12, 10, 11]), 3, 5, 6, tasks=1)
    with pytest.raises(TooFewError, match=r"What fits: ways=2 with queries=5\."):
        EpisodeSampler(traceable([6, 6]), 3, 1, 6, tasks=1)


def test_small_classes_are_left_out_on_demand(traceable: Traceable) -> None:
    with pytest.raises(TooFewError):
        EpisodeSampler(traceable([3, 9, 9]), 2, 1, 3, tasks=4)
    sampler = EpisodeSampler(traceable([3, 9, 9]), 2, 1, 3, tasks=4, skip_small=True)
    assert sampler.left_out == ["c0"]
    classes = (sampler[0].query_x[..., 1, 1] * 255).round()  # the fourth pixel
    assert set(classes.unique().tolist()) == {1, 2}
    assert repr(sampler) == (
        "EpisodeSampler(ClassDataset(3 classes, 3 to 9 examples each, inputs (1, 2, 2)), ways=2, "
        "shots=1, queries=3, tasks=4, seed=0)"
    )


@pytest.mark.parametrize("name", ["ways", "shots", "queries", "tasks", "length"])
def test_sizes_must_be_positive(traceable: Traceable, name: str) -> None:
    sizes = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, "length": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be .*at least 1.*got 0"):
        EpisodeSampler(traceable([4, 4]), **sizes)


def test_a_sampler_is_a_task_source(traceable: Traceable) -> None:
    source: TaskSource = EpisodeSampler(traceable([4, 4, 4]), 3, 1, 1, tasks=1)
    assert source.ways == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tasks_do_not_depend_on_the_device(traceable: Traceable) -> None:
    dataset = traceable([20] * 30)
    on_cpu = EpisodeSampler(dataset, 5, 1, 5, tasks=4)[7]
    on_gpu = EpisodeSampler(dataset, 5, 1, 5, tasks=4, device="cuda")[7]
    assert on_gpu.support_x.is_cuda
    assert on_gpu.support_y.is_cuda
    assert same(on_cpu, on_gpu.to("cpu"))
