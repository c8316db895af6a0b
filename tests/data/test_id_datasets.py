from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from fastmeta.data import EpisodeSampler, Graph, Jitter, NodeDataset, TextDataset

IDS = torch.tensor([[3, 1], [4, 0], [2, 2], [1, 0], [4, 4], [1, 3]])
LABELS = torch.tensor([1, 0, 2, 1, 0, 1])
NAMES = ["a", "b", "c"]
GRAPH = Graph(torch.eye(9), torch.tensor([[0], [1]]))


def texts() -> TextDataset:
    return TextDataset(IDS, LABELS, NAMES, 5)


def nodes() -> NodeDataset:
    return NodeDataset(torch.tensor([8, 0, 3, 1, 7, 5]), LABELS, NAMES, GRAPH)


def test_indices_group_the_examples_by_class() -> None:
    for dataset in (texts(), nodes()):
        assert [rows.tolist() for rows in dataset.class_indices] == [[1, 4], [0, 3, 5], [2]]
        assert (len(dataset), dataset.num_classes, dataset.device.type) == (6, 3, "cpu")


def test_inputs_are_the_ids_themselves() -> None:
    index = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(texts().inputs(index), IDS[index])
    assert nodes().inputs(index).tolist() == [[5, 8], [3, 3]]


def test_subset_relabels_in_the_given_order() -> None:
    subset = nodes().subset([2, 0])
    assert list(subset.class_names) == ["c", "a"]
    assert subset.labels.tolist() == [0, 1, 1]
    assert subset.ids.tolist() == [3, 0, 7]
    assert subset.graph is GRAPH
    assert texts().subset([1]).vocabulary == 5


def test_copies_and_pickles_are_equal() -> None:
    for duplicate in (
        copy.deepcopy,
        lambda d: pickle.loads(pickle.dumps(d)),
        lambda d: d.to("cpu"),
    ):
        other = duplicate(texts())
        assert torch.equal(other.ids, IDS)
        assert torch.equal(other.labels, LABELS)
        assert (list(other.class_names), other.vocabulary) == (NAMES, 5)
        assert [len(rows) for rows in other.class_indices] == [2, 3, 1]
        assert torch.equal(duplicate(nodes()).graph.features, GRAPH.features)


def test_pickle_size_is_independent_of_the_classes() -> None:
    count = 500
    dataset = TextDataset(
        torch.ones(count, 2).long(), torch.arange(count), [*map(str, range(count))], 2
    )
    assert len(pickle.dumps(dataset)) < 60_000


@pytest.mark.parametrize(
    ("ids", "labels", "error", "message"),
    [
        (IDS.float(), LABELS, TypeError, "ids must be int64; got torch.float32"),
        (IDS, LABELS.int(), TypeError, "labels must be int64; got torch.int32"),
        (IDS[1:], LABELS, ValueError, r"got \(5, 2\) and \(6,\)"),
        (IDS, LABELS[:, None], ValueError, r"labels \(n,\); got"),
        (IDS, LABELS.to("meta"), ValueError, "on one device"),
        (IDS, LABELS + 1, ValueError, r"labels must lie in 0\.\.2"),
        (IDS, LABELS.clamp(max=1), ValueError, "every class needs an example; got none of c"),
        (IDS + 1, LABELS, ValueError, r"ids must lie in 0\.\.4.*got 1\.\.5"),
        (IDS - 1, LABELS, ValueError, r"got -1\.\.3"),
    ],
)
def test_inconsistent_data_is_named(
    ids: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TextDataset(ids, labels, NAMES, 5)


def test_nodes_must_be_in_the_graph() -> None:
    with pytest.raises(ValueError, match=r"0\.\.8, the 9 nodes of the graph; got 2\.\.9"):
        NodeDataset(torch.arange(2, 10)[[0, 1, 2, 3, 4, 7]], LABELS, NAMES, GRAPH)


def test_episodes_of_ids_keep_their_type() -> None:
    dataset = TextDataset(torch.arange(60).view(30, 2), torch.arange(30) % 3, NAMES, 60)
    batch = EpisodeSampler(dataset, 3, 2, 4, tasks=7)[3]
    assert batch.support_x.shape == (7, 6, 2)
    assert batch.query_x.shape == (7, 12, 2)
    rows = torch.cat([batch.support_x, batch.query_x], dim=1)
    assert rows.dtype == torch.int64
    assert torch.equal(rows[..., 1], rows[..., 0] + 1)
    classes = rows[..., 0] // 2 % 3
    for task in classes.view(7, 6, 3):  # label j % ways is one class throughout
        assert (task == task[0]).all()
        assert task[0].unique().numel() == 3
    assert all(row[:, 0].unique().numel() == 18 for row in rows)


def test_ids_are_not_augmented() -> None:
    sampler = EpisodeSampler(nodes().subset([0, 1]), 2, 1, 1, tasks=1, jitter=Jitter(shift=1.0))
    with pytest.raises(ValueError, match=r"jitter applies to images only; got torch\.int64"):
        sampler[0]
