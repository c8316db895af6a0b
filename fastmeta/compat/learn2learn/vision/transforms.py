"""Task transforms for images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from fastmeta.compat.learn2learn.data import MetaDataset
from fastmeta.compat.learn2learn.data.task_dataset import Description


class RandomClassRotation:
    """Rotates the images of a task; use it after `LoadData`.

    As in learn2learn 0.2.0, an angle is sampled for each class, but all images of the task are
    rotated by that of the last class.

    Args:
        dataset: the dataset.
        degrees: the angles to sample from, counterclockwise.

    Raises:
        ValueError: if an angle is not a multiple of 90.
    """

    def __init__(self, dataset: MetaDataset, degrees: Sequence[float]) -> None:
        if any(angle % 90 for angle in degrees):
            raise ValueError(
                f"degrees must be multiples of 90; got {list(degrees)}. For other angles, use a "
                "torchvision transform in the dataset."
            )
        self.dataset = dataset
        self.degrees = degrees

    def __call__(self, task_description: Description) -> Description:
        """The examples, to be rotated when they are loaded."""
        angles: dict[Any, float] = {}
        for one in task_description:
            label = self.dataset.indices_to_labels[one.index]
            if label not in angles:
                angles[label] = random.choice(self.degrees)
        last = angles[label] if angles else 0.0

        def rotate(example: Sequence[Any]) -> tuple[Any, Any]:
            torch.rand(1)  # as torchvision does, so that later random numbers agree
            return torch.rot90(example[0], int(last // 90), (-2, -1)), example[1]

        for one in task_description:
            one.transforms.append(rotate)
        return task_description
