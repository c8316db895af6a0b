"""Reader of the original files of the Planetoid citation graphs, pickles of Python 2."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmeta.data._io.errors import data_error
from fastmeta.data._io.pickles import load_pickle

SOURCE = "Download it again from https://github.com/kimiyoung/planetoid (data/)."

_MAX_ELEMENTS = 2**26  # of a dense feature matrix: five times the size of CiteSeer's
_PARTS = ("allx", "ally", "tx", "ty", "graph", "test.index")


class Citations(NamedTuple):
    """A citation graph.

    Attributes:
        features: `(nodes, F)` float32.
        edges: `(2, E)` int64, each edge once, without self-loops.
        labels: `(nodes,)` int64 class indices; -1 for unlabelled nodes.
    """

    features: NDArray[np.float32]
    edges: NDArray[np.int64]
    labels: NDArray[np.int64]


def read_planetoid(folder: Path, name: str, classes: int) -> Citations:
    """Reads the graph `ind.NAME.*` with the given number of classes.

    `allx` and `ally` are features and one-hot labels of the first nodes, `tx` and `ty`
    those of the nodes listed in `test.index`. Isolated nodes among these are in neither: their
    features are 0, and they have no label. (`x` and `y`, the first rows of `allx` and
    `ally`, are not read.)

    Raises:
        DataError: if files are missing, corrupt or inconsistent.
    """
    paths = {part: folder / f"ind.{name}.{part}" for part in _PARTS}
    features, labels = _rows(paths["allx"]), _labels(paths["ally"], classes)
    test_features, test_labels = _rows(paths["tx"]), _labels(paths["ty"], classes)
    nodes, edges = _edges(paths["graph"])
    test = _test_nodes(paths["test.index"], range(len(features), nodes))
    shapes = [part.shape for part in (features, test_features)]
    _check(
        folder / f"ind.{name}.*",
        shapes == [(len(labels), shapes[0][1]), (len(test), shapes[0][1])]
        and len(test) == len(test_labels),
        expected="as many rows in allx as in ally, and in tx as in ty and test.index",
        found=f"allx and tx {shapes}, ally {len(labels)}, ty {len(test_labels)}, test.index "
        f"{len(test)}",
    )
    all_features = np.zeros((nodes, shapes[0][1]), dtype=np.float32)
    all_labels = np.full(nodes, -1, dtype=np.int64)
    all_features[: len(features)], all_labels[: len(labels)] = features, labels
    all_features[test], all_labels[test] = test_features, test_labels
    return Citations(all_features, edges, all_labels)


class _SparseRows:
    """Replacement for `scipy.sparse.csr_matrix`, whose code does not check its indices."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _rows(path: Path) -> NDArray[np.float32]:
    sparse = _load(path, {"scipy.sparse.csr.csr_matrix": _SparseRows})
    try:
        rows, columns = sparse.state[b"_shape"]
        starts, indices, values = (sparse.state[k] for k in (b"indptr", b"indices", b"data"))
        if len(starts) != rows + 1 or not 0 <= rows * columns <= _MAX_ELEMENTS:
            raise ValueError(f"its shape is ({rows}, {columns})")
        dense = np.zeros((rows, columns), dtype=np.float32)
        row = np.repeat(np.arange(rows), np.diff(starts))
        # NumPy checks the upper bound of the indices.
        if starts[0] != 0 or starts[-1] != len(values) or (indices < 0).any():
            raise ValueError("its indices and values do not match")
        if not np.isfinite(values).all():
            raise ValueError("it has non-finite values")
        dense[row, indices] = values
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, MemoryError) as error:
        raise data_error(
            path,
            expected="a pickled scipy.sparse.csr_matrix",
            found=f"another object or a corrupt one ({type(error).__name__}: {error})",
            fix=SOURCE,
        ) from error
    return dense


def _labels(path: Path, classes: int) -> NDArray[np.int64]:
    labels = _load(path)
    matrix = isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.shape[1] == classes
    _check(
        path,
        matrix and ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all(),
        expected=f"a pickled matrix of one-hot labels of {classes} classes",
        found="a matrix of other values"
        if matrix
        else reprlib.repr(getattr(labels, "shape", labels)),
    )
    found: NDArray[np.int64] = labels.argmax(1)
    return found


def _test_nodes(path: Path, rest: range) -> NDArray[np.int64]:
    content = _content(path)
    try:
        nodes = np.array([int(line) for line in content.split()], np.int64)
    except (ValueError, OverflowError) as error:
        raise data_error(
            path, expected="one node per line", found=f"a corrupt file ({error})", fix=SOURCE
        ) from error
    _check(
        path,
        len(nodes) and len(set(nodes.tolist()) & set(rest)) == len(nodes),
        expected=f"distinct nodes of {rest.start}..{rest.stop - 1}, those after allx",
        found=f"{len(nodes)} of {nodes.min()}..{nodes.max()}" if len(nodes) else "none",
    )
    return nodes


def _edges(path: Path) -> tuple[int, NDArray[np.int64]]:
    """The number of nodes, and the edges `(2, E)`."""
    graph = _load(path, {"collections.defaultdict": lambda _: {}, "__builtin__.list": None})
    try:
        nodes = len(graph)
        pairs = np.array([(i, j) for i, neighbours in graph.items() for j in neighbours])
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise data_error(
            path,
            expected="a pickled dictionary of lists of neighbours",
            found=f"another object or a corrupt one ({error})",
            fix=SOURCE,
        ) from error
    _check(
        path,
        pairs.ndim == 2 and pairs.dtype == np.int64 and pairs.min() >= 0 and pairs.max() < nodes,
        expected=f"edges between the nodes 0..{nodes - 1}",
        found=f"nodes {pairs.min()}..{pairs.max()}" if pairs.dtype == np.int64 else "no nodes",
    )
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    edges: NDArray[np.int64] = pairs[pairs[:, 0] < pairs[:, 1]].T
    return nodes, edges


def _load(path: Path, extra: Mapping[str, Any] = {}) -> Any:
    return load_pickle(io.BytesIO(_content(path)), path, SOURCE, extra)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise data_error(path, expected="a file", found=found, fix=SOURCE) from error


def _check(where: Path, valid: Any, *, expected: str, found: str) -> None:
    if not valid:
        raise data_error(where, expected=expected, found=found, fix=SOURCE)
