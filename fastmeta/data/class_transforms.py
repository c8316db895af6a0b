"""Transformations that make new classes of old ones.

Santoro et al., "Meta-learning with memory-augmented neural networks" (2016), turn each Omniglot
character by 90, 180 and 270 degrees and take every turn for a class of its own. The images are
materialised: memory grows with the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastmeta.data.image_dataset import ClassDataset


def add_rotations(dataset: ClassDataset) -> ClassDataset:
    """Four times the classes: each as it is, and turned counter-clockwise by 90, 180 and 270.

    Class ``c`` of ``n`` becomes ``c`` (its name kept), ``n + c`` (``"name/rot90"``), ``2n + c`` and
    ``3n + c``.

    Raises:
        ValueError: if the images are not square.
    """
    height, width = dataset.images.shape[-2:]
    if height != width:
        raise ValueError(f"rotations need square images; got {height}x{width}. Resize them first.")
    turned = [dataset.images.rot90(k, dims=(-2, -1)) for k in range(4)]
    return _join(dataset, turned, ("", "/rot90", "/rot180", "/rot270"))


def add_inversion(dataset: ClassDataset) -> ClassDataset:
    """Twice the classes: each as it is, and as its negative (``255 - pixel``, ``"name/inv"``).

    Class ``c`` of ``n`` becomes ``c`` (its name kept) and ``n + c``.
    """
    return _join(dataset, [dataset.images, 255 - dataset.images], ("", "/inv"))


def multiply_classes(dataset: ClassDataset, *, rotations: bool, inversion: bool) -> ClassDataset:
    """The classes times rotations (4) times inversion (2), as asked; ``"7/rot90/inv"`` is one."""
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
