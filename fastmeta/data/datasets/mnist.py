"""MNIST and Fashion-MNIST, with rotations and negatives as further classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastmeta.data._io.errors import data_error
from fastmeta.data._io.folders import find_folder
from fastmeta.data._io.idx import read_idx
from fastmeta.data.class_transforms import multiply_classes
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import DIGITS, HeldOut, limit_examples, split_classes


class _Variant(NamedTuple):
    class_names: tuple[str, ...]
    held_out: HeldOut
    source: str


_SIZE = 28
_VARIANTS = {
    "mnist": _Variant(tuple("0123456789"), DIGITS, "https://github.com/cvdfoundation/mnist"),
    "fashion-mnist": _Variant(
        (
            "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        # One kind of clothing and one of shoes, each with a clear top and bottom. Bags without a
        # handle look the same when rotated by 180 degrees, and tops are hard to tell apart.
        HeldOut(val=(3,), test=(1, 9)),
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
}  # fmt: skip


def load_mnist(
    root: str | Path,
    split: str,
    *,
    name: str = "mnist",
    rotations: bool = True,
    inversion: bool = True,
    val_classes: Sequence[int] | None = None,
    test_classes: Sequence[int] | None = None,
    examples_per_class: int | None = None,
) -> ClassDataset:
    """Loads "modified MNIST": digits, their rotations and the negatives of both are classes.

    Classes are held out by digit, so that test tasks consist of digits never seen in training. By
    default 4 and 7 are for test, 3 for validation, the rest for training (7 * 4 * 2 = 56 classes).
    0, 1 and 8 look the same when rotated by 180 degrees, 2 and 5 nearly so, and a 6 becomes a 9:
    some training classes are hence one picture with two labels, but no validation or test classes
    are. For Fashion-MNIST the defaults are trouser and ankle boot for test, dress for validation.

    That gives 8 validation and 16 test classes. For 20 ways hold out three digits each,
    `val_classes=(2, 5, 9), test_classes=(3, 4, 7)`: 24 validation, 24 test and 32 training
    classes. Of the other digits, 2, 5 and 9 look least like rotations of themselves and each other.

    "train" and "val" use the files of 60,000 images and "test" those of 10,000, whose MNIST digits
    are by other writers. The images of all classes are materialized: 263 MB for "train"; reduce
    this with `examples_per_class`.

    Args:
        root: the folder of the four IDX files (plain or `.gz`), or a folder with the subfolder
            `name`.
        split: `"train"`, `"val"` or `"test"`.
        name: `"mnist"` or `"fashion-mnist"`.
        rotations: whether to add classes rotated by 90, 180 and 270 degrees.
        inversion: whether to add negatives as classes.
        val_classes: original classes (0-9) for validation instead of the default.
        test_classes: original classes (0-9) for test instead of the default.
        examples_per_class: use only the first images of each class, this many; all by default.

    Returns:
        Images `(n, 1, 28, 28)` with class names such as `"4/rot90/inv"`.

    Raises:
        DataError: if a file is missing, truncated or corrupt, or images and labels do not match.
        ValueError: if `name` or `split` is unknown, or the held-out classes are invalid.
    """
    if name not in _VARIANTS:
        raise ValueError(f"name must be one of {', '.join(_VARIANTS)}; got {name!r}.")
    variant = _VARIANTS[name]
    classes = split_classes(
        split,
        len(variant.class_names),
        variant.held_out.val if val_classes is None else val_classes,
        variant.held_out.test if test_classes is None else test_classes,
    )
    prefix = "t10k" if split == "test" else "train"
    markers = [f"{prefix}-images-idx3-ubyte{suffix}" for suffix in (".gz", "")]
    folder = find_folder(root, name, markers, f"Download the files from {variant.source}.")
    images, labels = _read_pair(folder, prefix, variant.class_names)
    dataset = ClassDataset(
        torch.tensor(images)[:, None], torch.tensor(labels, dtype=torch.int64), variant.class_names
    )
    dataset = limit_examples(dataset.subset(classes), examples_per_class)
    return multiply_classes(dataset, rotations=rotations, inversion=inversion)


def _read_pair(
    folder: Path, prefix: str, class_names: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images_path = _plain_or_gz(folder / f"{prefix}-images-idx3-ubyte")
    labels_path = _plain_or_gz(folder / f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    fix = "Download both files again."
    if images.shape[1:] != (_SIZE, _SIZE):
        size = "x".join(str(side) for side in images.shape[1:])
        raise data_error(images_path, expected="28x28 images", found=f"{size} images", fix=fix)
    if len(images) != len(labels):
        raise data_error(
            labels_path,
            expected=f"{len(images)} labels, one for each image of {images_path.name}",
            found=f"{len(labels)}",
            fix=fix,
        )
    present = set(labels.tolist())
    if present != set(range(len(class_names))):
        raise data_error(
            labels_path,
            expected=f"images of every label 0..{len(class_names) - 1} and no other",
            found=f"the labels {sorted(present)}",
            fix=fix,
        )
    return images, labels


def _plain_or_gz(path: Path) -> Path:
    return path if path.exists() else path.with_name(f"{path.name}.gz")
