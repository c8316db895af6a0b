"""Datasets, task transforms and tasksets."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastmeta.compat.learn2learn import data as l2l_data
from fastmeta.compat.learn2learn.data.transforms import (
    FilterLabels,
    FusedNWaysKShots,
    KShots,
    LoadData,
    NWays,
    RemapLabels,
)

MetaDataset = l2l_data.MetaDataset


@pytest.fixture
def dataset() -> MetaDataset:
    """60 examples in 12 classes, five each."""
    return MetaDataset(TensorDataset(torch.arange(60), torch.randperm(60) % 12))


@pytest.mark.parametrize("fused", [False, True])
def test_tasks_have_n_ways_and_k_shots(dataset: MetaDataset, fused: bool) -> None:
    ways, shots = random.randint(1, 12), random.randint(1, 5)
    draw = (
        [FusedNWaysKShots(dataset, ways, shots)]
        if fused
        else [NWays(dataset, ways), KShots(dataset, shots)]
    )
    tasks = l2l_data.Taskset(dataset, [*draw, LoadData(dataset), RemapLabels(dataset)])
    x, y = tasks.sample()
    assert y.bincount().tolist() == [shots] * ways
    assert len(x.unique()) == ways * shots
    classes = {(dataset.indices_to_labels[i], k) for i, k in zip(x.tolist(), y.tolist())}  # noqa: B905
    assert len(classes) == ways


@pytest.mark.parametrize("fused", [False, True])
def test_transforms_filter_a_description(dataset: MetaDataset, fused: bool) -> None:
    draw = (
        [FusedNWaysKShots(dataset, 3, 2, filter_labels=[1, 2, 4])]
        if fused
        else [FilterLabels(dataset, [1, 2, 4]), NWays(dataset, 3), KShots(dataset, 2)]
    )
    chain = [FilterLabels(dataset, range(6)), *draw, LoadData(dataset)]
    labels = l2l_data.Taskset(dataset, chain).sample()[1]
    assert len(labels) == 6
    assert set(labels.tolist()) == {1, 2, 4}


def test_tasks_are_sampled_once(dataset: MetaDataset) -> None:
    chain = [FusedNWaysKShots(dataset, 3, 2), LoadData(dataset)]
    tasks = l2l_data.Taskset(dataset, chain, num_tasks=4)
    assert len(tasks) == 4
    first = [x.tolist() for x, _ in tasks]
    assert first == [x.tolist() for x, _ in tasks]
    assert tasks[2][0].tolist() == first[2]
    loaded = [x[0].tolist() for x, _ in DataLoader(tasks)]
    assert loaded == first


def test_unlimited_tasks(dataset: MetaDataset) -> None:
    tasks = l2l_data.Taskset(dataset, lambda task: KShots(dataset, 1)(task), task_collate=list)
    assert len(tasks) == 1
    drawn = {tuple(task) for task, _ in zip(tasks, range(30))}  # noqa: B905
    assert len(drawn) > 1
    assert not tasks.sampled_descriptions


@pytest.mark.parametrize("num_tasks", [0, -2])
def test_invalid_num_tasks(dataset: MetaDataset, num_tasks: int) -> None:
    with pytest.raises(ValueError, match=f"or -1 for unlimited; got {num_tasks}"):
        l2l_data.Taskset(dataset, num_tasks=num_tasks)


def test_task_dataset_is_deprecated(dataset: MetaDataset) -> None:
    with pytest.warns(DeprecationWarning, match="Taskset"):
        assert len(l2l_data.TaskDataset(dataset, num_tasks=3)) == 3


def test_meta_dataset_expects_a_dataset() -> None:
    with pytest.raises(TypeError, match="got list"):
        MetaDataset([(1, 2)])


def test_known_classes_are_not_read(dataset: MetaDataset) -> None:
    class Unreadable(TensorDataset):
        def __getitem__(self, i: int) -> None:
            raise AssertionError("read")

    unreadable = Unreadable(torch.arange(60))
    by_label = MetaDataset(unreadable, labels_to_indices=dataset.labels_to_indices)
    by_index = MetaDataset(unreadable, indices_to_labels=dataset.indices_to_labels)
    for known in (by_label, by_index):
        assert known.labels_to_indices == dataset.labels_to_indices
        assert known.indices_to_labels == dataset.indices_to_labels
        assert known.labels == dataset.labels


class Growing(torch.utils.data.Dataset):
    """A dataset to which examples can be appended."""

    def __init__(self, labels: list[Any]) -> None:
        self.examples = labels

    def __getitem__(self, i: int) -> tuple[int, Any]:
        return i, self.examples[i]

    def __len__(self) -> int:
        return len(self.examples)


def test_create_bookkeeping_after_a_change() -> None:
    data = Growing([3, 1, 3])
    meta = MetaDataset(data)
    tasks = l2l_data.Taskset(meta, [NWays(meta, 3), KShots(meta, 1)], task_collate=list)
    data.examples += [torch.tensor(7), 1]
    meta.create_bookkeeping()
    assert meta.labels == [3, 1, 7]
    assert meta.labels_to_indices == {3: [0, 2], 1: [1, 4], 7: [3]}
    assert meta.indices_to_labels == {0: 3, 1: 1, 2: 3, 3: 7, 4: 1}
    assert {meta.indices_to_labels[i] for i in tasks.sample()} == {1, 3, 7}


def test_create_bookkeeping_from_mappings() -> None:
    meta = MetaDataset(Growing([3, 1, 3]))
    by_label = {"b": [2], "a": [0, 1], "empty": []}
    meta.create_bookkeeping(labels_to_indices=by_label)
    assert meta.labels_to_indices is by_label
    assert meta.labels == ["b", "a", "empty"]
    assert meta.indices_to_labels == {0: "a", 1: "a", 2: "b"}
    by_index = {2: "c", 0: "d", 1: "c"}
    meta.create_bookkeeping(indices_to_labels=by_index)
    assert meta.indices_to_labels is by_index
    assert meta.labels == ["c", "d"]
    assert meta.labels_to_indices == {"c": [2, 1], "d": [0]}
    meta.create_bookkeeping(by_label, by_index)
    assert meta.indices_to_labels == {0: "a", 1: "a", 2: "b"}


def test_create_bookkeeping_ignores_the_attribute_of_the_dataset() -> None:
    data = Growing([3, 1])
    data.indices_to_labels = {0: "a", 1: "b"}
    meta = MetaDataset(data)
    assert meta.labels == ["a", "b"]
    meta.create_bookkeeping()
    assert meta.labels == [3, 1]


def test_the_constructor_calls_create_bookkeeping() -> None:
    class Parity(MetaDataset):
        def create_bookkeeping(self, *args: Any, **kwargs: Any) -> None:
            super().create_bookkeeping(*args, **kwargs)
            super().create_bookkeeping(
                indices_to_labels={i: y % 2 for i, y in self.indices_to_labels.items()}
            )

    assert Parity(Growing([3, 1, 4])).labels_to_indices == {1: [0, 1], 0: [2]}


def test_create_bookkeeping_of_filtered_and_union() -> None:
    data = Growing([3, 1, 3])
    part = MetaDataset(data)
    kept = l2l_data.FilteredMetaDataset(part, [3])
    both = l2l_data.UnionMetaDataset([part, kept])
    data.examples.append(3)
    for meta in (part, kept, both):
        meta.create_bookkeeping()
    assert [kept[i] for i in range(len(kept))] == [(0, 3), (2, 3), (3, 3)]
    assert kept.labels_to_indices == {3: [0, 1, 2]}
    assert both.labels_to_indices == {0: [0, 2, 3], 1: [1], 2: [4, 5, 6]}
    assert both[6] == [3, 2]


def test_labels_must_be_scalars() -> None:
    with pytest.raises(ValueError, match=r"example 1: expected a scalar label; got .*\[2\]"):
        MetaDataset(Growing([0, torch.tensor([1, 2])]))


def test_filtered_and_union(dataset: MetaDataset) -> None:
    kept = l2l_data.FilteredMetaDataset(dataset, [4, 2])
    assert len(kept) == 10
    assert kept.labels == [4, 2]
    assert [kept[i][1].item() for i in range(10)] == [4] * 5 + [2] * 5
    both = l2l_data.UnionMetaDataset([kept, dataset])
    assert len(both) == 70
    assert both.labels == list(range(14))
    i = random.randrange(60)
    x, label = both[10 + i]
    assert x == i
    assert label == 2 + dataset.labels.index(dataset.indices_to_labels[i])
    with pytest.raises(ValueError, match=r"the 12 classes of the dataset; got \[12\]"):
        l2l_data.FilteredMetaDataset(dataset, [1, 12])


def test_partition_task() -> None:
    labels = torch.arange(12)[torch.randperm(12)] % 3
    data = torch.arange(12)
    (x, y), (query_x, query_y) = l2l_data.partition_task(data, labels, shots=1)
    assert y.tolist() == [0, 1, 2]
    assert query_y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sorted([*x.tolist(), *query_x.tolist()]) == list(range(12))
    assert torch.equal(labels[x], y)
    assert torch.equal(labels[query_x], query_y)
    assert x.tolist() == [data[labels == k][0] for k in range(3)]
    with pytest.raises(ValueError, match=r"at least 5; got 12 .* \[4, 4, 4\]"):
        l2l_data.partition_task(data, labels, shots=5)
    with pytest.raises(ValueError, match=r"\[3, 4, 4\]|\[4, 3, 4\]|\[4, 4, 3\]"):
        l2l_data.partition_task(data[1:], labels[1:])


def test_on_device_dataset_and_infinite_iterator() -> None:
    data = l2l_data.OnDeviceDataset(
        TensorDataset(torch.arange(3.0), torch.arange(3)), device="cpu", transform=lambda x: -x
    )
    assert data[2][0] == -2
    assert data[2][1] == 2
    loader = l2l_data.InfiniteIterator(DataLoader(data, batch_size=2))
    assert [len(next(loader)[0]) for _ in range(5)] == [2, 1, 2, 1, 2]
