"""IDX files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastmeta.data import DataError
from fastmeta.data._io.idx import read_idx

WriteIdx = Callable[[Path, NDArray[np.uint8]], Path]
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path: Path, write_idx: WriteIdx, suffix: str) -> None:
    path = write_idx(tmp_path / f"images{suffix}", IMAGES)
    assert np.array_equal(read_idx(path, ndim=3), IMAGES)


HEADER = bytes([0, 0, 8, 1]) + struct.pack(">I", 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\x00\x00\x08\x03" + HEADER[4:] + b"abcd", "magic number 00000801 .* found 00000803"),
        (b"\x00\x00\x0d\x01" + HEADER[4:] + b"abcd", "found 00000d01"),
        (b"<html>not found</html>", "found 3c68746d"),
        (HEADER[:6], "a header of 8 bytes; found 6 bytes"),
        (HEADER + b"abc", r"4 bytes of data for the shape \(4,\) .* found 3 \(truncated\)"),
        (HEADER + b"abcde", r"found 5 \(trailing bytes\)"),
        (gzip.compress(HEADER + b"abcd", mtime=0)[:-9], "found a corrupt one"),
        (gzip.compress(HEADER + b"abc", mtime=0), r"found 3 \(truncated\)"),
        (gzip.compress(HEADER + b"abcd", mtime=0)[:-8] + bytes(8), "corrupt one .CRC"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, ndim=1)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


def test_huge_dimensions_are_refused_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(DataError, match=f"expected {(2**32 - 1) ** 3} bytes"):
        read_idx(path, ndim=3)
