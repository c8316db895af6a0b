"""Transforms of tasks of images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from fastmeta.compat.learn2learn.data import MetaDataset
from fastmeta.compat.learn2learn.data.task_dataset import Description


class RandomClassRotation:
    """Turns the images of a task; use it after ``LoadData``.

    As in learn2learn 0.2.0, an angle is drawn for each class, but that of the last class turns all
    images of the task.

    Args:
        dataset: the data set.
        degrees: the angles to draw from, counterclockwise.

    Raises:
        ValueError: if one is no multiple of 90.
    """

    def __init__(self, dataset: MetaDataset, degrees: Sequence[float]) -> None:
        if any(angle % 90 for angle in degrees):
            raise ValueError(
                f"degrees must be multiples of 90; got {list(degrees)}. For others, add a "
                "transform of torchvision's to the data set."
            )
        self.dataset = dataset
        self.degrees = degrees

    def __call__(self, task_description: Description) -> Description:
        """The same examples, turned when they are loaded."""
        angles: dict[Any, float] = {}
        for one in task_description:
            label = self.dataset.indices_to_labels[one.index]
            if label not in angles:
                angles[label] = random.choice(self.degrees)
        last = angles[label] if angles else 0.0

        def turn(example: Sequence[Any]) -> tuple[Any, Any]:
            torch.rand(1)  # torchvision draws here, too: torch's later random numbers stay the same
            return torch.rot90(example[0], int(last // 90), (-2, -1)), example[1]

        for one in task_description:
            one.transforms.append(turn)
        return task_description
