"""Reader of the pickles in which mini-ImageNet is distributed."""

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

_FIX = "Download the file again, or use the lists and images."


def read_pickled(path: Path, image_size: int) -> ClassDataset:
    """The images of `{"image_data": (n, H, W, 3) uint8, "class_dict": {name: [rows]}}`.

    Args:
        path: path of the pickle.
        image_size: height and width to which the images are resized.

    Raises:
        DataError: if it is not such a pickle.
        ImportError: if images need resizing and Pillow is missing.
    """
    with path.open("rb") as file:
        content = load_dict(file, path, _FIX)
    images, classes = content.get("image_data"), content.get("class_dict")
    if not isinstance(images, np.ndarray) or not isinstance(classes, dict):
        raise _invalid(path, "an array image_data and a dictionary class_dict", ", ".join(content))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise _invalid(
            path, "image_data (n, H, W, 3) of uint8", f"{images.shape} of {images.dtype}"
        )
    indices = {
        text(name): found.tolist() if isinstance(found, np.ndarray) else found
        for name, found in classes.items()
    }
    names = sorted(indices)
    labels = _labels(path, [indices[name] for name in names], len(images))
    pixels = torch.from_numpy(resize_rgb(images, image_size))
    return ClassDataset(pixels, torch.from_numpy(labels), names)


def _labels(path: Path, indices: Sequence[Any], count: int) -> NDArray[np.int64]:
    """The labels of `count` images from the image indices of each class."""
    valid = all(isinstance(found, list) and found for found in indices)
    order = [i for found in indices for i in found] if valid else []
    if not all(isinstance(i, int) for i in order) or sorted(order) != list(range(count)):
        raise _invalid(
            path,
            f"each row of image_data, 0..{count - 1}, in one class of class_dict",
            f"{len(indices)} classes with {len(order)} rows",
        )
    labels = np.empty(count, dtype=np.int64)
    labels[order] = np.repeat(np.arange(len(indices)), [len(found) for found in indices])
    return labels


def _invalid(path: Path, expected: str, found: str) -> DataError:
    return data_error(path, expected=expected, found=found, fix=_FIX)
