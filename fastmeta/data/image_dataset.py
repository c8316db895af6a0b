"""Images grouped by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.data.dataset import describe, group_by_class, select_classes


class Normalization(NamedTuple):
    """Mean and standard deviation of pixels in `[0, 1]`: one value, or one per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class ClassDataset:
    """Labelled images in memory as uint8, a quarter of the size of float32.

    Attributes:
        images: `(n, C, H, W)` uint8.
        labels: `(n,)` int64 class indices into `class_names`, on the device of `images`.
        class_names: one distinct name per class.
        normalization: normalization that `inputs` applies after dividing by 255, or `None`.
        class_indices: for each class, the ascending int64 indices of its images; on the CPU.

    Raises:
        TypeError: if `images` is not uint8 or `labels` is not int64.
        ValueError: if shapes or devices do not match, a label is out of range, a class has no
            image, a name occurs twice, or the normalization does not match the channels.
    """

    images: Tensor
    labels: Tensor
    class_names: Sequence[str]
    normalization: Normalization | None = None
    class_indices: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        _check_tensors(self.images, self.labels)
        if self.normalization is not None:
            _check_normalization(self.normalization, channels=self.images.shape[1])
        object.__setattr__(
            self, "class_indices", group_by_class(self.labels.cpu(), self.class_names)
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __repr__(self) -> str:
        return describe(self, self.images.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        # Not class_indices: these are views of one tensor, and pickle would save it once for each.
        return (type(self), (self.images, self.labels, list(self.class_names), self.normalization))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """The device of the images, on which `inputs` gathers them."""
        return self.images.device

    def inputs(self, index: Tensor) -> Tensor:
        """The images at `index` as model inputs.

        Args:
            index: int64 indices of any shape `(*s,)`, on any device.

        Returns:
            `(*s, C, H, W)` float32 on the device of the images: `images / 255`, then
            `(x - mean) / std` if there is a normalization.
        """
        flat = index.reshape(-1).to(self.device)
        x = self.images.index_select(0, flat).to(torch.float32).div_(255)
        if self.normalization is not None:
            mean, std = (x.new_tensor(value).view(-1, 1, 1) for value in self.normalization)
            x = x.sub_(mean).div_(std)
        return x.view(*index.shape, *x.shape[1:])

    def subset(self, class_ids: Sequence[int]) -> ClassDataset:
        """The images of `class_ids` only, sorted by class and relabelled `0..` in that order.

        Raises:
            ValueError: if `class_ids` is empty, repeats a class or contains one out of range.
        """
        indices, labels, names = select_classes(self, class_ids)
        images = self.images.index_select(0, indices)
        return replace(self, images=images, labels=labels, class_names=names)

    def to(self, device: torch.device | str) -> ClassDataset:
        """The same dataset with images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def _check_tensors(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or labels.dtype != torch.int64:
        raise TypeError(
            f"images must be uint8 and labels int64; got {images.dtype} and {labels.dtype}. "
            "Convert pixels in [0, 1] with (images * 255).round().to(torch.uint8)."
        )
    if images.dim() != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            "images must be (n, C, H, W) and labels (n,); got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}. "
            "Add a missing channel dimension with images[:, None]."
        )
    if images.device != labels.device:
        raise ValueError(
            f"images and labels must be on one device; got {images.device} and {labels.device}. "
            "Move the dataset as a whole with .to(device)."
        )


def _check_normalization(normalization: Normalization, channels: int) -> None:
    mean, std = normalization
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
        raise ValueError(
            f"normalization needs 1 or {channels} means and as many positive standard deviations; "
            f"got mean {mean} and std {std}."
        )
