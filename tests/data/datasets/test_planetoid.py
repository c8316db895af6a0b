from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmeta.data import DataError, EpisodeSampler, load_planetoid
from fastmeta.data.datasets._planetoid_files import Citations
from tests.helpers.python2_pickles import built, dumps, lists, named, sparse, sparse_rows, unicode
from tests.helpers.synthetic_files import write_planetoid

SIZES = {"cora": (3, 2, 2), "citeseer": (2, 2, 2)}


@pytest.fixture
def cora(tmp_path: Path) -> Citations:
    return write_planetoid(tmp_path, "cora", classes=7)


def damage(root: Path, suffix: str, content: bytes) -> Path:
    path = root / "planetoid" / f"ind.cora.{suffix}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", SIZES)
def test_splits_are_of_classes_and_share_the_graph(name: str, tmp_path: Path) -> None:
    truth = write_planetoid(tmp_path, name, classes=sum(SIZES[name]))
    parts = [load_planetoid(tmp_path, split, name=name) for split in ("train", "val", "test")]
    assert tuple(part.num_classes for part in parts) == SIZES[name]
    names = [n for part in parts for n in part.class_names]
    assert sorted(names) == [str(c) for c in range(sum(SIZES[name]))]
    for part in parts:
        assert torch.equal(part.graph.features, torch.from_numpy(truth.features))
        assert {*map(tuple, part.graph.edges.T.tolist())} == {*map(tuple, truth.edges.T.tolist())}
        assert part.graph.edges.shape == truth.edges.shape
        for label, nodes in enumerate(part.class_indices):
            assert (
                part.ids[nodes].tolist()
                == np.flatnonzero(truth.labels == int(part.class_names[label])).tolist()
            )  # and so without the node that has no label
    other = load_planetoid(tmp_path, "train", name=name, split_seed=12)
    assert len(other.class_names) == SIZES[name][0]


def test_the_root_may_be_the_folder_itself(cora: Citations, tmp_path: Path) -> None:
    named = load_planetoid(tmp_path / "planetoid", "val")
    assert torch.equal(named.ids, load_planetoid(tmp_path, "val").ids)


def test_episodes_are_of_nodes(cora: Citations, tmp_path: Path) -> None:
    dataset = load_planetoid(tmp_path, "train")
    batch = EpisodeSampler(dataset, 2, 3, 4, tasks=5)[0]
    assert batch.support_x.shape == (5, 6)
    assert batch.query_x.shape == (5, 8)
    assert batch.support_x.dtype == torch.int64
    labels = cora.labels[torch.cat([batch.support_x, batch.query_x], dim=1).numpy()]
    for row in labels.reshape(5, 7, 2):
        assert len({*row[:, 0]}) == len({*row[:, 1]}) == 1
        assert row[0, 0] != row[0, 1]


def wrong_labels(value: int) -> NDArray[np.int32]:
    labels = np.eye(7, dtype=np.int32)[np.arange(140) % 7]
    labels[3, 5] = value
    return labels


ONES = sparse(np.ones((140, 12)))
STARTS = list(range(141))
CLASS = named("scipy.sparse.csr", "csr_matrix")


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("ally", np.ones((140, 7), np.int32), "one-hot labels of 7.*other values"),
        ("ally", wrong_labels(-1), "one-hot labels"),
        ("ally", np.eye(6, dtype=np.int32), r"of 7 classes; found \(6, 6\)"),
        ("ally", wrong_labels(0)[:100], r"allx and tx .* ally 100"),
        ("ally", lists({}), "refers to collections.defaultdict"),
        ("allx", np.ones((140, 12)), "a pickled scipy.sparse.csr_matrix"),
        ("allx", sparse(np.ones((140, 13))), "as many rows in allx as in ally"),
        ("allx", sparse(np.full((140, 12), np.inf)), "non-finite"),
        ("allx", sparse_rows((140, 12), STARTS, [12] * 140, [1.0] * 140), "out of bounds"),
        ("allx", sparse_rows((140, 12), STARTS, [-1] * 140, [1.0] * 140), "do not match"),
        ("allx", sparse_rows((140, 12), STARTS, [0] * 140, [1.0] * 139), "do not match"),
        ("allx", sparse_rows((140, 12), STARTS, [0] * 139, [1.0] * 140), "corrupt one"),
        ("allx", sparse_rows((140, 12), STARTS[::-1], [0] * 140, [1.0] * 140), "corrupt one"),
        ("allx", sparse_rows((999, 12), STARTS, [0] * 140, [1.0] * 140), "corrupt one"),
        ("allx", sparse_rows((-1, 12), STARTS, [0] * 140, [1.0] * 140), "corrupt one"),
        ("allx", built(CLASS, (None, {unicode("x"): None})), "found a corrupt or truncated one"),
        ("graph", lists({0: [1], 1: [0, 2]}), r"nodes 0\.\.1; found nodes 0\.\.2"),
        ("graph", lists({-1: [0]}), r"found nodes -1\.\.0"),
        ("graph", lists({0: [1], 1: [0]}), "distinct nodes of"),
        ("graph", lists({}), "found no nodes"),
        ("graph", ONES, "refers to scipy.sparse.csr.csr_matrix"),
        ("graph", np.ones(3), "a pickled dictionary of lists of neighbours"),
    ],
)
def test_inconsistent_files_are_named(
    cora: Citations, tmp_path: Path, suffix: str, content: object, message: str
) -> None:
    path = damage(tmp_path, suffix, dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        load_planetoid(tmp_path, "train")
    assert str(caught.value).startswith(str(path.with_name("ind.cora.")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("140\nx\n", "one node per line"),
        ("", "found none"),
        ("139\n150\n", r"of 140\.\.209.*found 2 of 139\.\.150"),
        ("150\n210\n", r"of 140\.\.209.*found 2 of 150\.\.210"),
        ("150\n150\n", "distinct nodes"),
        ("150\n", "test.index 1"),
        ("9" * 30, "one node per line"),
    ],
)
def test_an_invalid_test_index_is_named(
    cora: Citations, tmp_path: Path, content: str, message: str
) -> None:
    damage(tmp_path, "test.index", content.encode())
    with pytest.raises(DataError, match=message):
        load_planetoid(tmp_path, "train")


@pytest.mark.parametrize("suffix", ["allx", "ally", "tx", "ty", "graph", "test.index"])
def test_truncated_and_missing_files_are_named(
    cora: Citations, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "planetoid" / f"ind.cora.{suffix}"
    damage(tmp_path, suffix, path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=suffix):
        load_planetoid(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match=rf"{suffix}(: .* no such file| here .* neither)"):
        load_planetoid(tmp_path, "train")


def test_arguments_are_checked(cora: Citations, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of cora, citeseer; got 'pubmed'"):
        load_planetoid(tmp_path, "train", name="pubmed")
    with pytest.raises(ValueError, match="split must be one of"):
        load_planetoid(tmp_path, "valid")
    with pytest.raises(ValueError, match="seed must be at least 0"):
        load_planetoid(tmp_path, "train", split_seed=-1)
