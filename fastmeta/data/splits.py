"""Splits of the classes into training, validation and test classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastmeta.data._rng import TaskRNG, check_seed
from fastmeta.data.image_dataset import ClassDataset

SPLITS = ("train", "val", "test")


class HeldOut(NamedTuple):
    """Classes held out from training."""

    val: tuple[int, ...]
    test: tuple[int, ...]


# 0, 1 and 8 look the same when rotated by 180 degrees, 2 and 5 nearly so, and a rotated 6 is a 9:
# as test classes these would be one picture with two labels. 3, 4 and 7 are unambiguous.
DIGITS = HeldOut(val=(3,), test=(4, 7))


def check_split(split: str) -> str:
    """Returns `split` if it is valid.

    Raises:
        ValueError: if it is none of `train`, `val` and `test`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    return split


def split_classes(
    split: str, total: int, val_classes: Sequence[int], test_classes: Sequence[int]
) -> list[int]:
    """The class ids of a split; `train` has those in neither `val` nor `test`.

    Raises:
        ValueError: if `split` is unknown, a class occurs twice or is not in `0..total-1`, or
            the split has no class.
    """
    check_split(split)
    held_out = [*val_classes, *test_classes]
    if len(set(held_out)) != len(held_out) or not set(held_out) <= set(range(total)):
        raise ValueError(
            f"val_classes and test_classes must be distinct and lie in 0..{total - 1}; "
            f"got {list(val_classes)} and {list(test_classes)}."
        )
    train = [c for c in range(total) if c not in held_out]
    chosen = {"train": train, "val": list(val_classes), "test": list(test_classes)}[split]
    if not chosen:
        raise ValueError(
            f"split {split!r} has no class: val_classes are {list(val_classes)}, test_classes "
            f"{list(test_classes)} of {total}."
        )
    return chosen


def limit_examples(dataset: ClassDataset, examples: int | None) -> ClassDataset:
    """The first `examples` images of each class, or all for `None`.

    Raises:
        ValueError: if `examples` is below 1 or a class has fewer.
    """
    if examples is None:
        return dataset
    counts = [len(indices) for indices in dataset.class_indices]
    if not 1 <= examples <= min(counts):
        smallest = counts.index(min(counts))
        raise ValueError(
            f"examples_per_class must be at least 1 and at most {counts[smallest]}, the size of "
            f"the smallest class, {dataset.class_names[smallest]!r}; got {examples}."
        )
    kept = torch.cat([indices[:examples] for indices in dataset.class_indices])
    return ClassDataset(
        dataset.images[kept], dataset.labels[kept], dataset.class_names, dataset.normalization
    )


def draw_split(split: str, sizes: tuple[int, int, int], seed: int) -> list[int]:
    """The class ids of a random split, in ascending order.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        sizes: number of classes of train, val and test.
        seed: `0 <= seed < 2**64`; the splits of one seed are disjoint.

    Raises:
        ValueError: if `split` is unknown or `seed` is out of range.
    """
    part = SPLITS.index(check_split(split))
    total = sum(sizes)
    shuffled = TaskRNG(check_seed(seed), 0).sample(np.array([total]), total)[0]
    start = sum(sizes[:part])
    return sorted(shuffled[start : start + sizes[part]].tolist())
