"""Pickles as written by Python 2 and its NumPy (protocol 2)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Code(bytes):
    """Pickle instructions that make a value, which need not be valid."""


def dumps(value: Any) -> bytes:
    """Pickles ``None``, booleans, integers, strings (bytes in Python 2), containers, code."""
    return b"\x80\x02" + _code(value) + b"."


def named(module: str, name: str) -> Code:
    return Code(f"c{module}\n{name}\n".encode())


def called(function: Code, *arguments: Any) -> Code:
    return Code(function + _code(arguments) + b"R")


def built(value: Code, state: Any) -> Code:
    return Code(value + _code(state) + b"b")


def unicode(text: str) -> Code:
    return Code(b"X" + struct.pack("<i", len(text.encode())) + text.encode())


def array(kind: str, shape: tuple[int, ...], raw: Any, order: str = "|") -> Code:
    dtype = called(named("numpy", "dtype"), kind, 0, 1)
    dtype = built(dtype, (3, order, None, None, None, -1, -1, 0))
    make, of = named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray")
    return built(called(make, of, (0,), "b"), (1, shape, dtype, False, raw))


def sparse_rows(
    shape: tuple[int, int], starts: list[int], columns: list[int], values: list[float]
) -> Code:
    """A ``scipy.sparse.csr_matrix``."""
    state = {
        "format": "csr",
        "_shape": shape,
        "indptr": np.array(starts, dtype="<i4"),
        "indices": np.array(columns, dtype="<i4"),
        "maxprint": 50,
        "data": np.array(values, dtype="<f4"),
    }
    return built(Code(named("scipy.sparse.csr", "csr_matrix") + b")\x81"), state)


def sparse(dense: NDArray[Any]) -> Code:
    rows, columns = dense.nonzero()
    starts = np.searchsorted(rows, np.arange(len(dense) + 1))
    return sparse_rows(dense.shape, starts.tolist(), columns.tolist(), dense[dense != 0].tolist())


def lists(graph: dict[int, list[int]]) -> Code:
    """A ``defaultdict(list)``."""
    empty = called(named("collections", "defaultdict"), named("__builtin__", "list"))
    return Code(empty + _items(graph))


def _code(value: Any) -> bytes:
    if isinstance(value, Code):
        return value
    if isinstance(value, np.ndarray):
        return array(value.dtype.str[1:], value.shape, value.tobytes(), value.dtype.str[0])
    if isinstance(value, dict):
        return b"}" + _items(value)
    if isinstance(value, list | tuple):
        items = b"(" + b"".join(map(_code, value))
        return items + b"t" if isinstance(value, tuple) else b"]" + items + b"e"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    content = value.encode("latin1") if isinstance(value, str) else value
    return b"T" + struct.pack("<i", len(content)) + content


def _items(value: dict[Any, Any]) -> bytes:
    return b"(" + b"".join(_code(k) + _code(v) for k, v in value.items()) + b"u"
