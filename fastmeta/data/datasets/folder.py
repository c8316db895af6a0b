"""A user's own images: one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fastmeta._checks import check_choice, check_integer
from fastmeta.data._io.cache import Arrays, cached, fingerprint, path_hash
from fastmeta.data._io.class_folders import decode_images, find_images, is_grey, to_grey
from fastmeta.data._own_splits import WHOLE, Splits, sizes_of, split_own
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import SPLITS, check_split

Color = Literal["auto", "grey", "rgb"]

_COLORS = ("auto", "grey", "rgb")


def load_folder(
    root: str | Path,
    split: str,
    *,
    image_size: int = 32,
    color: Color = "auto",
    split_seed: int = 0,
    merge: bool = False,
    train_classes: Sequence[str] | None = None,
    val_classes: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
    cache: bool = True,
) -> ClassDataset:
    """Loads images from a folder per class, such as `cats/1.jpg` and `dogs/1.jpg`.

    If `root` has folders `train` and `test`, and perhaps `val`, these hold the classes of each
    split; without `val`, some classes of `train` are for validation. Otherwise all classes are
    split by `split_seed`: a fifth each, or five if that is more and at most a third of the classes,
    for validation and test. Classes may be in folders of folders; their names are relative paths.

    JPEG, PNG, BMP, GIF and WebP images of any size are resized to squares with an antialiased
    bilinear filter. All images are decoded once and cached in `FASTMETA_CACHE` (default
    `~/.cache/fastmeta`), and again when a file changes.

    Args:
        root: the folder.
        split: `"train"`, `"val"` or `"test"`.
        image_size: height and width of the images.
        color: `"grey"`: one channel; `"rgb"`: three; `"auto"`: one if no image has colours.
        split_seed: seed of the split of the classes, `0 <= split_seed < 2**64`.
        merge: whether to pool `train`, `val` and `test` and split the classes by seed, for
            folders that have the same classes in each.
        train_classes: names of the training classes, instead of all that are not held out.
        val_classes: names of the validation classes, instead of a split by seed.
        test_classes: names of the test classes, instead of a split by seed.
        cache: whether to cache decoded images.

    Returns:
        Images `(n, C, image_size, image_size)` of classes of any number of images.

    Raises:
        DataError: if there are too few classes, a class is in two splits, or an image is corrupt.
        ImportError: if Pillow is missing.
        ValueError: if an argument is out of range.
    """
    check_split(split)
    check_integer("image_size", image_size, 1)
    check_choice("color", color, _COLORS)
    where = Path(root).expanduser()
    found = _find(where)
    splits = split_own(
        where,
        sizes_of(found),
        split_seed=split_seed,
        merge=merge,
        train_classes=train_classes,
        val_classes=val_classes,
        test_classes=test_classes,
    )
    arrays = _decoded(where, found, image_size, cache)
    images, classes = arrays["images"], arrays["classes"]
    if color == "grey" or (color == "auto" and is_grey(images)):
        images = to_grey(images)
    rows = [np.flatnonzero(classes == name) for name in splits[split]]
    labels = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    return ClassDataset(torch.from_numpy(images[np.concatenate(rows)]), labels, splits[split])


def folder_splits(root: Path, minimum: int, options: Mapping[str, Any]) -> Splits:
    """The names of the classes of each split, see [`fastmeta.data.class_splits`][]."""
    return split_own(root, sizes_of(_find(root)), minimum=minimum, **options)


def _find(root: Path) -> dict[str, dict[str, list[Path]]]:
    """The images by split, or `WHOLE`, and class."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        return {part: find_images(root / part) for part in SPLITS if (root / part).is_dir()}
    return {WHOLE: find_images(root)}


def _decoded(
    root: Path, found: Mapping[str, Mapping[str, Sequence[Path]]], side: int, cache: bool
) -> Arrays:
    """RGB images of all splits, whose colours decide the mode, and the names of their classes."""
    files = [
        (name, path) for part in found.values() for name, paths in part.items() for path in paths
    ]

    def build() -> Arrays:
        return {
            "images": decode_images([path for _, path in files], side),
            "classes": np.array([name for name, _ in files]),
        }

    if not cache:
        return build()
    key = f"1|{side}|{fingerprint(path for _, path in files)}"
    return cached(f"folder-{path_hash(root)}-{side}", key, build)
