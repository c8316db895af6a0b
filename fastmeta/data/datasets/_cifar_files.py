"""Reader of the Python version of CIFAR-100."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmeta.data._io.archives import read_tar
from fastmeta.data._io.errors import DataError, data_error
from fastmeta.data._io.pickles import load_dict, text
from fastmeta.data.image_dataset import ClassDataset

SOURCE = "Download cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html."
FOLDER = "cifar-100-python"
ARCHIVE = f"{FOLDER}.tar.gz"

_SIDE = 32
_LABELS = ("fine_labels", "coarse_labels")
_NAMES = ("fine_label_names", "coarse_label_names")


def read_cifar100(root: Path) -> ClassDataset:
    """All images of CIFAR-100, those of the file "train" before those of "test".

    Args:
        root: the folder that contains `cifar-100-python` or, if there is none, its `.tar.gz`.

    Returns:
        Images `(n, 3, 32, 32)` with class names such as `"fish/flatfish"`; classes without an
        image are left out.

    Raises:
        DataError: if files are missing, corrupt or inconsistent.
    """
    where, contents = _contents(root)
    train, test, meta = (
        load_dict(io.BytesIO(content), where / name, SOURCE) for name, content in contents.items()
    )
    classes, superclasses = (_names(where / "meta", meta, key) for key in _NAMES)
    parts = [
        _part(where / name, content, (len(classes), len(superclasses)))
        for name, content in (("train", train), ("test", test))
    ]
    images, fine, coarse = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    pairs = sorted(set(zip(fine.tolist(), coarse.tolist(), strict=True)))
    present, labels = np.unique(fine, return_inverse=True)
    if len(pairs) != len(present):
        raise _invalid(where, "each class in one superclass", f"{len(pairs)} pairs of them")
    return ClassDataset(
        torch.from_numpy(images.reshape(-1, 3, _SIDE, _SIDE)),
        torch.from_numpy(labels),
        [f"{superclasses[coarse_id]}/{classes[fine_id]}" for fine_id, coarse_id in pairs],
    )


def _contents(root: Path) -> tuple[Path, dict[str, bytes]]:
    """The folder or archive, and the contents of the files "train", "test" and "meta"."""
    names, folder, archive = ("train", "test", "meta"), root / FOLDER, root / ARCHIVE
    if folder.is_dir():
        try:
            return folder, {name: (folder / name).read_bytes() for name in names}
        except OSError as error:
            raise _invalid(folder, "the files train, test and meta", str(error)) from error
    if archive.exists():
        members = read_tar(archive, [f"{FOLDER}/{name}" for name in names], SOURCE)
        return archive, {name: members[f"{FOLDER}/{name}"] for name in names}
    raise _invalid(root, f"{FOLDER}/ or {ARCHIVE}", "neither")


def _names(where: Path, meta: dict[str, Any], key: str) -> list[str]:
    names = meta.get(key)
    if not isinstance(names, list):
        raise _invalid(where, f"a list {key}", ", ".join(meta))
    return [text(name) for name in names]


def _part(
    where: Path, content: dict[str, Any], limits: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The images, classes and superclasses of a file; `limits` are the numbers of classes."""
    data = content.get("data")
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.shape[1:] != (3 * _SIDE**2,)
    ):
        raise _invalid(where, f"data (n, {3 * _SIDE**2}) of uint8", ", ".join(content))
    arrays = []
    for key, limit in zip(_LABELS, limits, strict=True):
        labels = content.get(key)
        if (
            not isinstance(labels, list)
            or len(labels) != len(data)
            or not all(isinstance(label, int) and 0 <= label < limit for label in labels)
        ):
            raise _invalid(where, f"{key}, {len(data)} of 0..{limit - 1}", "other values")
        arrays.append(np.array(labels, dtype=np.int64))
    return data, arrays[0], arrays[1]


def _invalid(where: Path, expected: str, found: str) -> DataError:
    return data_error(where, expected=expected, found=found, fix=SOURCE)
