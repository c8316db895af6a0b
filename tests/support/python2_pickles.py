"""Pickles as Python 2 wrote them, byte by byte: Python 3 names other modules."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def many(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def table(items: dict[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in items.items()) + b"u"


def array(values: NDArray[Any]) -> bytes:
    code = text(values.dtype.str[1:].encode())
    none, minus = b"N", integer(-1)
    dtype = named("numpy", "dtype") + many(code, integer(0), integer(1)) + b"R"
    order = text(values.dtype.str[:1].encode())
    dtype += many(integer(3), order, none, none, none, minus, minus, integer(0)) + b"b"
    empty = many(named("numpy", "ndarray"), many(integer(0)), text(b"b"))
    shape = many(*map(integer, values.shape))
    state = many(integer(1), shape, dtype, b"\x89", text(values.tobytes()))
    return named("numpy.core.multiarray", "_reconstruct") + empty + b"R" + state + b"b"


def sparse_rows(
    shape: tuple[int, int], starts: list[int], columns: list[int], values: list[float]
) -> bytes:
    """A ``scipy.sparse.csr_matrix``."""
    state = {
        b"format": text(b"csr"),
        b"_shape": many(*map(integer, shape)),
        b"indptr": array(np.array(starts, dtype="<i4")),
        b"indices": array(np.array(columns, dtype="<i4")),
        b"maxprint": integer(50),
        b"data": array(np.array(values, dtype="<f4")),
    }
    items = {text(key): value for key, value in state.items()}
    return named("scipy.sparse.csr", "csr_matrix") + b")\x81" + table(items) + b"b"


def sparse(dense: NDArray[Any]) -> bytes:
    rows, columns = dense.nonzero()
    starts = np.searchsorted(rows, np.arange(len(dense) + 1))
    return sparse_rows(dense.shape, starts.tolist(), columns.tolist(), dense[dense != 0].tolist())


def lists(graph: dict[int, list[int]]) -> bytes:
    """A ``defaultdict(list)``."""
    entries = {
        integer(node): b"](" + b"".join(map(integer, neighbours)) + b"e"
        for node, neighbours in graph.items()
    }
    made = named("collections", "defaultdict") + many(named("__builtin__", "list")) + b"R"
    return made + b"(" + b"".join(key + value for key, value in entries.items()) + b"u"
