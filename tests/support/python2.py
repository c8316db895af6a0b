"""Pickles as Python 2 and its numpy wrote them (protocol 2)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def dumps(value: Any) -> bytes:
    """Of dictionaries, lists, integers, texts (of Python 2, that is bytes) and arrays."""
    return b"\x80\x02" + _code(value) + b"."


def array_code(kind: str, shape: tuple[int, ...], raw: Any, order: str = "|") -> bytes:
    """The instructions that make an array, which need not fit each other."""
    dtype = b"cnumpy\ndtype\n(" + _code(kind) + b"K\x00K\x01tR"
    dtype += b"(K\x03" + _code(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    sides = b"(" + b"".join(_code(side) for side in shape) + b"t"
    return empty + b"(K\x01" + sides + dtype + b"\x89" + _code(raw) + b"tb"


def _code(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        order, kind = value.dtype.str[0], value.dtype.str[1:]
        return array_code(kind, value.shape, value.tobytes(), order)
    if isinstance(value, dict):
        return b"}(" + b"".join(_code(k) + _code(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_code(item) for item in value) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    content = value.encode("latin1") if isinstance(value, str) else value
    return b"T" + struct.pack("<i", len(content)) + content
