"""Transformations that create new classes from existing ones.

Santoro et al., "Meta-learning with memory-augmented neural networks" (2016), rotate each Omniglot
character by 90, 180 and 270 degrees and treat every rotation as a separate class. The images are
materialized: memory grows with the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastmeta.data.image_dataset import ClassDataset


def add_rotations(dataset: ClassDataset) -> ClassDataset:
    """Adds each class rotated counter-clockwise by 90, 180 and 270 degrees as a new class.

    Class `c` of `n` becomes `c` (its name kept), `n + c` (`"name/rot90"`), `2n + c` and
    `3n + c`.

    Raises:
        ValueError: if the images are not square.
    """
    height, width = dataset.images.shape[-2:]
    if height != width:
        raise ValueError(f"rotations need square images; got {height}x{width}. Resize them first.")
    rotated = [dataset.images.rot90(k, dims=(-2, -1)) for k in range(4)]
    return _join(dataset, rotated, ("", "/rot90", "/rot180", "/rot270"))


def add_inversion(dataset: ClassDataset) -> ClassDataset:
    """Adds the negative of each class (`255 - pixel`, `"name/inv"`) as a new class.

    Class `c` of `n` becomes `c` (its name kept) and `n + c`.
    """
    return _join(dataset, [dataset.images, 255 - dataset.images], ("", "/inv"))


def multiply_classes(dataset: ClassDataset, *, rotations: bool, inversion: bool) -> ClassDataset:
    """Adds rotations (4x the classes) and inversions (2x), as in `"7/rot90/inv"`."""
    if rotations:
        dataset = add_rotations(dataset)
    return add_inversion(dataset) if inversion else dataset


def _join(
    dataset: ClassDataset, variants: Sequence[Tensor], suffixes: Sequence[str]
) -> ClassDataset:
    count = dataset.num_classes
    return replace(
        dataset,
        images=torch.cat(list(variants)),
        labels=torch.cat([dataset.labels + k * count for k in range(len(variants))]),
        class_names=[name + suffix for suffix in suffixes for name in dataset.class_names],
    )
