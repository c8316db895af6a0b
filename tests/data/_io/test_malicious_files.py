"""Files that exhaust memory, and regressions found by ``tests.stress.fuzz_loaders``."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastmeta.data import DataError
from fastmeta.data._io import archives, images
from fastmeta.data._io.archives import open_zip, read_image, read_tar
from fastmeta.data._io.errors import data_error
from fastmeta.data._io.idx import read_idx
from fastmeta.data._io.images import decode_rgb
from fastmeta.data._io.pickles import load_pickle
from fastmeta.data.datasets import _mini_imagenet_files as mini_imagenet_files
from fastmeta.data.datasets._cifar_splits import read_classes
from fastmeta.data.datasets._omniglot_splits import read_vinyals
from fastmeta.data.datasets._planetoid_files import _rows
from tests.helpers import python2_pickles

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the limits so that small files exceed them."""
    monkeypatch.setattr(archives, "MAX_BYTES", 20_000)
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr(images, "_MAX_PIXELS", 1000)


def test_gzip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    for size in (20_000 - 8, 20_001 - 8):
        head = bytes([0, 0, 8, 1]) + struct.pack(">I", size)
        path.write_bytes(gzip.compress(head + bytes(size)))
        if size == 20_000 - 8:
            assert len(read_idx(path, ndim=1)) == size
    with pytest.raises(DataError, match=r"labels\.gz: expected at most 20000 bytes"):
        read_idx(path, ndim=1)


@pytest.mark.parametrize("name", ["wanted", "another"])
def test_tar_bombs_are_not_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 20_000
        archive.addfile(member, io.BytesIO(bytes(20_000)))
    with pytest.raises(DataError, match=r"a\.tar\.gz: expected at most 20000 bytes"):
        read_tar(path, ["wanted"], "")


def test_sparse_files_of_a_tar_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("wanted")
    member.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    with pytest.raises(DataError, match="no wanted"):
        read_tar(path, ["wanted"], "")


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        (zipfile.ZIP_DEFLATED, 1000, None),
        (zipfile.ZIP_DEFLATED, 1001, "a decompresses to more than 1000 bytes"),
        (zipfile.ZIP_STORED, 1001, "more than 1000 bytes"),
        (zipfile.ZIP_LZMA, 10, "a is not compressed with deflate"),
        (zipfile.ZIP_BZIP2, 10, "not compressed with deflate"),
    ],
)
def test_zip_bombs_are_not_unpacked(
    tmp_path: Path, method: int, size: int, message: str | None
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", bytes(size))

    def read() -> bytes:
        with open_zip(path, "") as archive:
            return read_image(archive, "a")

    if message is None:
        assert read() == bytes(size)
    else:
        with pytest.raises(DataError, match=rf"a\.zip: .*{message}"):
            read()


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"content")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: .*encrypted"), open_zip(path, "") as archive:
        read_image(archive, "a")


def test_images_of_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    def png(side: int) -> bytes:
        file = io.BytesIO()
        Image.new("1", (side, side)).save(file, "PNG")
        return file.getvalue()

    assert decode_rgb(["a"], lambda _: png(31), 8, tmp_path).shape == (1, 3, 8, 8)
    with pytest.raises(DataError, match=r"a: expected a JPEG or PNG image; .*32x32 pixels"):
        decode_rgb(["a"], lambda _: png(32), 8, tmp_path)


def nested(depth: int) -> python2_pickles.Code:
    """A tuple of two of a tuple of two ...: exponentially large once written out."""
    return python2_pickles.Code(b")" + b"q\x00h\x00\x86" * depth)


@pytest.mark.parametrize(
    "content",
    [
        python2_pickles.dumps(
            python2_pickles.called(python2_pickles.named("numpy", "dtype"), nested(60))
        ),
        python2_pickles.dumps(python2_pickles.array("u1", nested(60), b"")),  # type: ignore[arg-type]
        b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"a.",
        b"\x80\x05\x8e" + struct.pack("<Q", 2**60) + b"a.",
    ],
    ids=["dtype", "shape", "bytearray", "bytes"],
)
def test_pickles_that_ask_for_memory_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="a: expected a complete pickle") as caught:
        load_pickle(io.BytesIO(content), "a", "")
    assert len(str(caught.value)) < 1000


def test_pickle_memo_keys_take_no_memory() -> None:
    """A memo key up to 2**32 must not allocate as many entries."""
    assert load_pickle(io.BytesIO(b"\x80\x02}r\xff\xff\xff\xff."), "a", "") == {}


def test_bytearrays_are_read() -> None:
    """Arrays of protocol 5 are made of bytearrays."""
    values = np.arange(5000)
    found = load_pickle(io.BytesIO(pickle.dumps(values, 5)), "a", "")
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("rows", "columns"), [(2**31 - 1, 1), (1, 2**31 - 1), (-1, -1)])
def test_huge_matrices_are_refused(tmp_path: Path, rows: int, columns: int) -> None:
    path = tmp_path / "allx"
    path.write_bytes(
        python2_pickles.dumps(python2_pickles.sparse_rows((rows, columns), [0, 0], [], []))
    )
    with pytest.raises(DataError, match=r"allx: .*its shape is"):
        _rows(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text("[" * 10**5)
    for read in (lambda: read_classes(tmp_path, "train", ["a/b"]), lambda: read_vinyals(path)):
        with pytest.raises(DataError, match=r"train\.json: "):
            read()


def test_messages_are_short(tmp_path: Path) -> None:
    assert len(str(data_error("a", expected="b", found="c" * 10**6, fix="d"))) < 1000
    path = tmp_path / "train.csv"
    path.write_text(json.dumps("a" * 10**5))
    with pytest.raises(DataError, match=r"train\.csv: expected the header") as caught:
        mini_imagenet_files.read_listed(path, 8, use_cache=False)
    assert len(str(caught.value)) < 1000
