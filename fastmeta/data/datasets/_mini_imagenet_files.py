"""Reader of mini-ImageNet as CSV lists and image files."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from fastmeta.data._io.archives import open_zip, read_image
from fastmeta.data._io.cache import Arrays, cached, fingerprint, path_hash
from fastmeta.data._io.errors import DataError, data_error
from fastmeta.data._io.images import decode_rgb
from fastmeta.data.image_dataset import ClassDataset

SOURCE = (
    "The lists are in https://github.com/twitter/meta-learning-lstm (data/miniImagenet), "
    "the images are ImageNet's (https://image-net.org)."
)

_FOLDER = "images"
_HEADER = ["filename", "label"]
_VERSION = "1"  # of the decoded arrays: increase it when they change


def read_listed(path: Path, image_size: int, *, use_cache: bool) -> ClassDataset:
    """The images of a list, in its order, with sorted classes.

    Args:
        path: path of the list; `images/` or, if there is none, `images.zip` is beside it.
        image_size: height and width of the decoded images.
        use_cache: whether to cache decoded images, see `fastmeta.data._io.cache.cached`.

    Raises:
        DataError: if the list is invalid, or an image is missing or corrupt.
        ImportError: if Pillow is missing.
    """
    files, classes = _read_list(path)
    source = path.parent / _FOLDER
    if not source.is_dir():
        source = path.parent / f"{_FOLDER}.zip"
    _check_present(source, files)

    def decode() -> Arrays:
        return {"images": _decode(source, files, image_size)}

    if use_cache:
        sources = [source / name for name in files] if source.is_dir() else [source]
        arrays = cached(
            f"mini-imagenet-{path.stem}-{image_size}-{path_hash(path)}",
            f"{_VERSION}|{fingerprint([path, *sources])}",
            decode,
        )
    else:
        arrays = decode()
    names, labels = np.unique(classes, return_inverse=True)
    return ClassDataset(
        torch.from_numpy(arrays["images"]), torch.from_numpy(labels).long(), names.tolist()
    )


def _read_list(path: Path) -> tuple[list[str], list[str]]:
    """The file names and the classes of all rows."""

    def invalid(expected: str, found: str) -> DataError:
        return data_error(path, expected=expected, found=found, fix=SOURCE)

    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header, *rows = list(filter(None, csv.reader(lines))) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise invalid("a readable CSV file", f"another one ({error})") from error
    if header != _HEADER:
        raise invalid(f"the header {','.join(_HEADER)}", repr(",".join(header)))
    if not rows:
        raise invalid("images", "only a header")
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not all(row):
            raise invalid("a file name and a label in each row", f"{row} in row {number}")
        # Other names could refer to files outside of the image folder.
        if row[0] in (".", "..") or "/" in row[0] or "\\" in row[0]:
            raise invalid("file names without a folder", f"{row[0]!r} in row {number}")
    files, classes = ([row[column] for row in rows] for column in (0, 1))
    ((file, count),) = Counter(files).most_common(1)
    if count > 1:
        raise invalid("each file once", f"{file} {count} times")
    return files, classes


def _check_present(source: Path, files: Sequence[str]) -> None:
    if source.is_dir():
        present = set(os.listdir(source))
    elif source.exists():
        with open_zip(source, SOURCE) as archive:
            members = (PurePosixPath(member) for member in archive.namelist())
            present = {m.name for m in members if m.parent == PurePosixPath(_FOLDER)}
    else:
        raise data_error(
            source.parent,
            expected=f"the images in {_FOLDER}/ or {source.name}",
            found="neither",
            fix=SOURCE,
        )
    missing = [name for name in files if name not in present]
    if missing:
        raise data_error(
            source,
            expected=f"the {len(files)} images of the list",
            found=f"{len(missing)} missing, the first {missing[0]}",
            fix=SOURCE,
        )


def _decode(source: Path, files: Sequence[str], image_size: int) -> NDArray[np.uint8]:
    if source.is_dir():
        return decode_rgb(files, lambda name: (source / name).read_bytes(), image_size, source)
    with open_zip(source, SOURCE) as archive:
        return decode_rgb(
            files, lambda name: read_image(archive, f"{_FOLDER}/{name}"), image_size, source
        )
