"""Standard few-shot benchmarks."""

from __future__ import annotations

import random
import warnings
from collections.abc import KeysView
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmeta.compat.learn2learn.data import MetaDataset, OnDeviceDataset, Taskset, transforms
from fastmeta.compat.learn2learn.vision.datasets import (
    CIFARFS,
    FC100,
    FullOmniglot,
    MiniImagenet,
)
from fastmeta.compat.learn2learn.vision.transforms import RandomClassRotation
from fastmeta.data._io.images import pillow


class BenchmarkTasksets(NamedTuple):
    """The training, validation and test tasks of a benchmark."""

    train: Taskset
    validation: Taskset
    test: Taskset


def get_tasksets(
    name: str,
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    num_tasks: int = -1,
    root: str | Path = "~/data",
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> BenchmarkTasksets:
    """The tasks of a standard benchmark, from local files.

    Args:
        name: one of [`list_tasksets`][fastmeta.compat.learn2learn.vision.benchmarks.list_tasksets].
        train_ways: classes per training task.
        train_samples: examples per class of a training task, support and query together.
        test_ways: classes per validation or test task.
        test_samples: examples per class of a validation or test task.
        num_tasks: the number of tasks in each set; -1 for unlimited.
        root: the folder of the files; see [`fastmeta.compat.learn2learn.vision.datasets`][].
        device: the device to load all examples to; by default, they are loaded on access.
        **kwargs: for mini-ImageNet `data_augmentation`: `None` for pixels from 0 to 255,
            `"normalize"` for pixels from 0 to 1.

    Raises:
        DataError: if files are missing or corrupt.
        ValueError: if the benchmark or an option is unknown.
    """
    if name not in _BENCHMARKS:
        raise ValueError(
            f"name must be one of {', '.join(_BENCHMARKS)}; got {name!r}. For other data, "
            "create a data.Taskset from a data.MetaDataset."
        )
    train = (train_ways, train_samples)
    test = (test_ways, test_samples)
    parts = _BENCHMARKS[name](train, test, Path(root).expanduser(), device, **kwargs)
    return BenchmarkTasksets(*(Taskset(data, chain, num_tasks) for data, chain in parts))


def list_tasksets() -> KeysView[str]:
    """The names of the benchmarks."""
    return _BENCHMARKS.keys()


_Size = tuple[int, int]  # ways and samples
_Part = tuple[MetaDataset, list[Any]]


def _omniglot(
    train: _Size, test: _Size, root: Path, device: torch.device | str | None
) -> list[_Part]:
    warnings.warn(
        "as in learn2learn 0.2.0, training, validation and test tasks of Omniglot are all sampled "
        "from the same 1,623 characters. To test on unseen characters, use "
        "fastmeta.data.load_omniglot or FusedNWaysKShots(filter_labels=...).",
        stacklevel=3,
    )
    data: Any = FullOmniglot(root, transform=_ink)
    dataset = MetaDataset(data if device is None else OnDeviceDataset(data, device))
    # learn2learn shuffles its labels here; later random numbers agree only if we do, too.
    random.shuffle(list(range(len(dataset.labels))))
    return [
        (
            dataset,
            [
                transforms.FusedNWaysKShots(dataset, n=ways, k=samples),
                transforms.LoadData(dataset),
                transforms.RemapLabels(dataset),
                transforms.ConsecutiveLabels(dataset),
                RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]),
            ],
        )
        for ways, samples in (train, test, test)
    ]


def _ink(image: Any) -> Tensor:
    """A tensor `(1, 28, 28)` with ink 1 on background 0."""
    small = image.resize((28, 28), pillow().Resampling.LANCZOS)
    return 1.0 - _to_tensor(small)[None]


def _by_split(
    kind: Any,
    transform: Any,
    train: _Size,
    test: _Size,
    root: Path,
    device: torch.device | str | None,
) -> list[_Part]:
    parts = []
    for mode, (ways, samples) in (("train", train), ("validation", test), ("test", test)):
        data: Any = kind(root, mode, transform)
        dataset = MetaDataset(data if device is None else OnDeviceDataset(data, device))
        remap, sort = transforms.RemapLabels(dataset), transforms.ConsecutiveLabels(dataset)
        chain = [
            transforms.NWays(dataset, ways),
            transforms.KShots(dataset, samples),
            transforms.LoadData(dataset),
            *((sort, remap) if mode == "validation" else (remap, sort)),
        ]
        parts.append((dataset, chain))
    return parts


def _mini_imagenet(*args: Any, data_augmentation: str | None = None) -> list[_Part]:
    known = {None: None, "normalize": _divide}
    if data_augmentation not in known:
        raise ValueError(
            f"data_augmentation must be None or 'normalize'; got {data_augmentation!r}. Pass other "
            "transforms to vision.datasets.MiniImagenet."
        )
    return _by_split(MiniImagenet, known[data_augmentation], *args)


def _divide(image: Tensor) -> Tensor:
    return image / 255.0


def _to_tensor(image: Any) -> Tensor:
    """A Pillow image as a tensor `(*channels, H, W)` from 0 to 1."""
    pixels = torch.from_numpy(np.array(image))
    return (pixels if pixels.dim() == 2 else pixels.permute(2, 0, 1)).float() / 255


_BENCHMARKS: dict[str, Any] = {
    "omniglot": _omniglot,
    "mini-imagenet": _mini_imagenet,
    "fc100": partial(_by_split, FC100, _to_tensor),
    "cifarfs": partial(_by_split, CIFARFS, _to_tensor),
}
