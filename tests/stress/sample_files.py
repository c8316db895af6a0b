"""Small valid datasets as files in memory, and malicious archives and pickles."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmeta.data import (
    load_banking77,
    load_cifar_fs,
    load_clinc150,
    load_mini_imagenet,
    load_mnist,
    load_omniglot,
    load_planetoid,
)

sys.path.append(str(Path(__file__).parents[1] / "support"))
from tests.helpers import python2_pickles, synthetic_files

Files = Mapping[str, bytes]


class Sample(NamedTuple):
    """The files of a dataset by path, and how to load it from its folder."""

    files: Callable[[], Files]
    load: Callable[[Path], Any]


def idx(array: NDArray[np.uint8]) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def mnist(pack: Callable[[bytes], bytes], suffix: str) -> Files:
    labels = np.tile(np.arange(10, dtype=np.uint8), 2)
    images = np.random.randint(0, 256, (20, 28, 28), dtype=np.uint8)
    return {
        f"train-images-idx3-ubyte{suffix}": pack(idx(images)),
        f"train-labels-idx1-ubyte{suffix}": pack(idx(labels)),
    }


def picture(side: int, form: str) -> bytes:
    pixels = np.random.randint(0, 256, (side, side, 3), dtype=np.uint8)
    return written(Image.fromarray(pixels), form)


def written(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def drawing() -> bytes:
    paper = np.full((105, 105), 255, dtype=np.uint8)
    row, column = np.random.randint(10, 60, 2)
    paper[row : row + 30, column : column + 15] = 0
    return written(Image.fromarray(paper).convert("1"), "PNG")


def omniglot() -> dict[str, bytes]:
    return {
        f"images_background/{alphabet}/character{c:02}/{c:04}_{d:02}.png": drawing()
        for alphabet, characters in {"Alpha": 2, "Beta": 1}.items()
        for c in range(1, characters + 1)
        for d in (1, 2)
    }


def mini_imagenet() -> dict[str, bytes]:
    names = [f"n0{i % 3}_{i}.{'jpg' if i % 2 else 'png'}" for i in range(6)]
    rows = [f"{name},{name.partition('_')[0]}" for name in names]
    images = {
        f"images/{n}": picture(20 + 3 * i, "PNG" if i % 2 == 0 else "JPEG")
        for i, n in enumerate(names)
    }
    return {"train.csv": "\n".join(["filename,label", *rows]).encode(), **images}


def pickled(dumps: Callable[[Any], bytes]) -> Files:
    images = np.random.randint(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    content = {"image_data": images, "class_dict": {"n0": [0, 2], "n1": [1, 3], "n2": [4, 5]}}
    return {"mini-imagenet-cache-train.pkl": dumps(content)}


def cifar() -> dict[str, bytes]:
    fine = [0, 1, 2, 3, 0, 1, 2, 3]
    part = {
        "fine_labels": fine,
        "coarse_labels": [label % 2 for label in fine],
        "data": np.random.randint(0, 256, (len(fine), 3072), dtype=np.uint8),
    }
    meta = {"fine_label_names": list("abcd"), "coarse_label_names": ["even", "odd"]}
    contents = {"train": part, "test": part, "meta": meta}
    return {
        **{f"cifar-100-python/{k}": python2_pickles.dumps(v) for k, v in contents.items()},
        "splits/cifar-fs/train.json": json.dumps(["a", ["odd", "d"], "c"]).encode(),
    }


def zipped(files: Files, folder: str) -> Files:
    """The files of a folder as ``folder.zip``, the others as they are."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for path, content in files.items():
            if path.startswith(folder):
                writer.writestr(path, content)
    rest = {path: content for path, content in files.items() if not path.startswith(folder)}
    return {f"{folder}.zip": archive.getvalue(), **rest}


def tarred(files: Files, folder: str) -> Files:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as writer:
        for path, content in files.items():
            if path.startswith(folder):
                member = tarfile.TarInfo(path)
                member.size = len(content)
                writer.addfile(member, io.BytesIO(content))
    rest = {path: content for path, content in files.items() if not path.startswith(folder)}
    return {f"{folder}.tar.gz": archive.getvalue(), **rest}


@cache
def from_synthetic(write: Callable[[Path], Any]) -> Files:
    with tempfile.TemporaryDirectory() as work:
        write(Path(work))
        files = [path for path in Path(work).rglob("*") if path.is_file()]
        return {str(path.relative_to(work)): path.read_bytes() for path in files}


def _cora(root: Path) -> None:
    synthetic_files.write_planetoid(root, "cora", 7, each=6)


def _omniglot(root: Path, cached: bool = False) -> Any:
    return load_omniglot(root, "train", image_size=8, validation=1, complete=False, cache=cached)


def _mini(root: Path, cached: bool = False) -> Any:
    return load_mini_imagenet(root, "train", image_size=10, complete=False, cache=cached)


def _mnist(root: Path) -> Any:
    return load_mnist(root, "train", rotations=False, inversion=False)


def _cifar(root: Path) -> Any:
    return load_cifar_fs(root, "train", complete=False)


SAMPLES = {
    "mnist": Sample(lambda: mnist(lambda b: b, ""), _mnist),
    "mnist.gz": Sample(lambda: mnist(gzip.compress, ".gz"), _mnist),
    "omniglot": Sample(omniglot, _omniglot),
    "omniglot.zip": Sample(lambda: zipped(omniglot(), "images_background"), _omniglot),
    "mini-imagenet": Sample(mini_imagenet, _mini),
    "mini-imagenet.zip": Sample(lambda: zipped(mini_imagenet(), "images"), _mini),
    "mini-imagenet.pkl": Sample(lambda: pickled(lambda v: pickle.dumps(v, 4)), _mini),
    "mini-imagenet.pkl of Python 2": Sample(lambda: pickled(python2_pickles.dumps), _mini),
    "cifar": Sample(cifar, _cifar),
    "cifar.tar.gz": Sample(lambda: tarred(cifar(), "cifar-100-python"), _cifar),
    "clinc150": Sample(
        lambda: from_synthetic(synthetic_files.write_clinc150),
        lambda root: load_clinc150(root, "train"),
    ),
    "banking77": Sample(
        lambda: from_synthetic(synthetic_files.write_banking77),
        lambda root: load_banking77(root, "train"),
    ),
    "cora": Sample(lambda: from_synthetic(_cora), lambda root: load_planetoid(root, "train")),
}


# --- malicious files

_LARGE = 2**30  # bytes: twice what a loader may take


def _zip_of(name: str, unpacked: int, said: int) -> bytes:
    """A zip archive with one member of zeros and a wrong size in its header."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = block * (unpacked >> 20) + packer.flush()
    head = struct.pack("<5H3I2H", 20, 0, 8, 0, 33, 0, len(packed), said, len(name), 0)
    local = b"PK\3\4" + head + name.encode() + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + head + bytes(14) + name.encode()
    end = struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + b"PK\5\6" + end


@cache
def _gzip_of_zeros(head: bytes) -> bytes:
    return gzip.compress(head) + gzip.compress(bytes(1 << 20)) * (_LARGE >> 20)


def _tar_header(name: str, size: int, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


class Trap:
    """Pickled as a command that creates a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch sprung",)


def _laughs(depth: int = 40) -> bytes:
    """A tuple of two of a tuple of two ...: small in memory, exponentially large in text."""
    return b"\x80\x02)" + b"q\x00h\x00\x86" * depth + b"."


HARMFUL_PICKLES = {
    "command": pickle.dumps({"image_data": Trap()}, 2),
    "great memo": b"\x80\x02}r" + struct.pack("<I", 2**28) + b".",
    "great bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
    "great bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"a.",
    "laughs": _laughs(),
    "laughs in a list": b"\x80\x02]" + _laughs()[2:-1] + b"a.",
    "laughs as a dtype": python2_pickles.dumps(
        python2_pickles.called(
            python2_pickles.named("numpy", "dtype"), python2_pickles.Code(_laughs()[2:-1])
        )
    ),
    "great matrix": python2_pickles.dumps(
        python2_pickles.sparse_rows((2**31 - 1, 2**31 - 1), [0, 0], [], [])
    ),
    "wide matrix": python2_pickles.dumps(
        python2_pickles.sparse_rows((1, 2**31 - 1), [0, 0], [], [])
    ),
    "long matrix": python2_pickles.dumps(
        python2_pickles.sparse_rows((2**31 - 1, 1), [0, 0], [], [])
    ),
    "deep": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
}


@cache
def malicious(suffix: str, name: str) -> list[bytes]:
    """Malicious contents for a file with this suffix, whose valid form has a member ``name``."""
    zeros = bytes(1 << 20)
    if suffix == ".zip":
        slips = [_zip_of(path, 0, 0) for path in ("../outside", "/tmp/outside", "a/../../outside")]
        return [*slips, _zip_of(name, _LARGE, _LARGE), _zip_of(name, _LARGE, said=100)]
    if suffix == ".gz":
        heads = [
            _tar_header("cifar-100-python/train", _LARGE, tarfile.REGTYPE),
            _tar_header("cifar-100-python/train", _LARGE, tarfile.XHDTYPE),
            _tar_header("cifar-100-python/train", _LARGE, tarfile.GNUTYPE_LONGNAME),
            bytes([0, 0, 8, 3]) + struct.pack(">3I", _LARGE // 784, 28, 28),
            bytes([0, 0, 8, 1]) + struct.pack(">I", _LARGE),
        ]
        return [_gzip_of_zeros(head) for head in heads]
    if suffix in (".json", ".csv"):
        return [b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**5, b'"' + zeros, b"filename,label\n\0,a"]
    if suffix in (".png", ".jpg"):
        white = Image.new("1", (12000, 12000))
        return [written(white, "PNG")]
    return list(HARMFUL_PICKLES.values())
