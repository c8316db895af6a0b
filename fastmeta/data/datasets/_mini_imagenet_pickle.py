"""Reads the pickles in which mini-ImageNet is handed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmeta.data._io.errors import DataError, data_error
from fastmeta.data._io.images import resize_rgb
from fastmeta.data._io.pickles import load_dict, text
from fastmeta.data.image_dataset import ClassDataset

_MEND = "Get the file again, or the lists and images."


def read_pickled(path: Path, image_size: int) -> ClassDataset:
    """The images of ``{"image_data": (n, H, W, 3) uint8, "class_dict": {name: [rows]}}``.

    Args:
        path: of the pickle.
        image_size: side of the images.

    Raises:
        DataError: if it is not such a pickle.
        ImportError: if images have another size and Pillow is missing.
    """
    with path.open("rb") as file:
        content = load_dict(file, path, _MEND)
    images, classes = content.get("image_data"), content.get("class_dict")
    if not isinstance(images, np.ndarray) or not isinstance(classes, dict):
        raise _wrong(path, "an array image_data and a dictionary class_dict", ", ".join(content))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise _wrong(path, "image_data (n, H, W, 3) of uint8", f"{images.shape} of {images.dtype}")
    rows = {
        text(name): found.tolist() if isinstance(found, np.ndarray) else found
        for name, found in classes.items()
    }
    names = sorted(rows)
    labels = _labels(path, [rows[name] for name in names], len(images))
    pixels = torch.from_numpy(resize_rgb(images, image_size))
    return ClassDataset(pixels, torch.from_numpy(labels), names)


def _labels(path: Path, rows: Sequence[Any], count: int) -> NDArray[np.int64]:
    """The labels of ``count`` images from the rows of each class."""
    whole = all(isinstance(found, list) and found for found in rows)
    order = [row for found in rows for row in found] if whole else []
    if not all(isinstance(row, int) for row in order) or sorted(order) != list(range(count)):
        raise _wrong(
            path,
            f"each row of image_data, 0..{count - 1}, in one class of class_dict",
            f"{len(rows)} classes with {len(order)} rows",
        )
    labels = np.empty(count, dtype=np.int64)
    labels[order] = np.repeat(np.arange(len(rows)), [len(found) for found in rows])
    return labels


def _wrong(path: Path, expected: str, found: str) -> DataError:
    return data_error(path, expected=expected, found=found, fix=_MEND)
