"""The IDX format of MNIST: a header of big-endian integers, then bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmeta.data._io.archives import read_decompressed
from fastmeta.data._io.errors import data_error

_UINT8 = 0x08
_DOWNLOAD = "Download the file again."


def read_idx(path: str | Path, ndim: int) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, plain or gzip-compressed (detected by its content).

    Args:
        path: path of the file.
        ndim: expected number of dimensions: 3 for images, 1 for labels.

    Returns:
        An array of the shape given in the header.

    Raises:
        DataError: if the file is missing or truncated, has trailing bytes, or its header is not
            that of `ndim`-dimensional unsigned bytes.
    """
    path = Path(path)
    content = read_decompressed(path, _DOWNLOAD)
    header_size = 4 + 4 * ndim
    magic = bytes([0, 0, _UINT8, ndim])
    if content[:4] != magic:
        raise data_error(
            path,
            expected=f"the IDX magic number {magic.hex()} ({ndim}-dimensional unsigned bytes)",
            found=content[:4].hex() or "an empty file",
            fix=_DOWNLOAD,
        )
    if len(content) < header_size:
        raise data_error(
            path,
            expected=f"a header of {header_size} bytes",
            found=f"{len(content)} bytes",
            fix=_DOWNLOAD,
        )
    shape = struct.unpack(f">{ndim}I", content[4:header_size])
    expected, found = math.prod(shape), len(content) - header_size
    if expected != found:
        problem = "truncated" if found < expected else "trailing bytes"
        raise data_error(
            path,
            expected=f"{expected} bytes of data for the shape {shape} of its header",
            found=f"{found} ({problem})",
            fix=_DOWNLOAD,
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)
