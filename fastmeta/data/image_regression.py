"""Images as regression tasks: from the coordinates of the pixels to their values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta._checks import check_integer
from fastmeta.data._rng import TaskRNG
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.task_source import SeededSource
from fastmeta.tasks import TaskBatch


class ImageRegression(SeededSource):
    """Meta-batches of images, each a regression task from coordinates to values (neural fields).

    A task is one image, drawn uniformly from the dataset. Its support set is all of its pixels, and
    so is its query set: the task is to fit the image, as in Tancik et al. 2021, "Learned
    Initializations for Optimizing Coordinate-Based Neural Representations" (Learnit), and Tack et
    al. 2023 (GradNCP). Labels of the images are not used.

    `source[i]` is a pure function of `(seed, i)`: see
    [`SeededSource`][fastmeta.data.task_source.SeededSource].

    Args:
        dataset: the images; of one split of classes.
        tasks: images per meta-batch, `T`.
        seed: `0 <= seed < 2**64`.
        length: number of meta-batches, or `None` for an infinite source.
        device: device to move the dataset to, or `None` to leave it where it is.

    Each meta-batch has `support_x` and `query_x` `(T, H * W, 2)`, the coordinates (row, then
    column) of the pixels from -1 to 1, and `support_y` and `query_y` `(T, H * W, C)`, their values
    in `[0, 1]`, whatever the normalization of the dataset; all float32.

    Raises:
        ValueError: if a number is out of range.
    """

    ways: int | None = None

    def __init__(
        self,
        dataset: ClassDataset,
        tasks: int,
        seed: int = 0,
        length: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(tasks=tasks, shots=1, queries=1, seed=seed, length=length)
        moved = dataset if device is None else dataset.to(device)
        self.dataset = replace(moved, normalization=None)

    def __repr__(self) -> str:
        end = "" if self.length is None else f", length={self.length}"
        return f"ImageRegression({self.dataset}, tasks={self.tasks}, seed={self.seed}{end})"

    def _draw(self, rng: TaskRNG) -> TaskBatch:
        chosen = rng.sample(np.full(rng.tasks, len(self.dataset), dtype=np.int64), 1)[:, 0]
        y = self.dataset.inputs(torch.from_numpy(chosen)).flatten(2).mT.contiguous()
        x = _coordinates(*self.dataset.images.shape[2:]).to(y.device).expand(len(y), -1, -1)
        return TaskBatch(support_x=x, support_y=y, query_x=x, query_y=y)


def downsampled(dataset: ClassDataset, size: int) -> ClassDataset:
    """The dataset with images of `size` x `size` pixels, the means of neighbouring ones.

    Raises:
        ValueError: if the images are smaller.
    """
    check_integer("size", size, 1)
    if size > min(dataset.images.shape[2:]):
        raise ValueError(
            f"size must be at most that of the images, {tuple(dataset.images.shape[2:])}; got "
            f"{size}."
        )
    parts = [F.adaptive_avg_pool2d(part.float(), size) for part in dataset.images.split(4096)]
    return replace(dataset, images=torch.cat([part.round().to(torch.uint8) for part in parts]))


def _coordinates(height: int, width: int) -> Tensor:
    """The coordinates `(height * width, 2)` of the pixels."""
    axes = [torch.linspace(-1, 1, size) for size in (height, width)]
    return torch.cartesian_prod(*axes)
