"""Image datasets from local files; nothing is downloaded.

Errors about missing files say where to get them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastmeta.data import load_cifar_fs, load_fc100, load_mini_imagenet
from fastmeta.data._io.folders import find_folder
from fastmeta.data._io.images import pillow
from fastmeta.data.datasets._omniglot_files import SIDE, SOURCE, read_part

__all__ = ["CIFARFS", "FC100", "FullOmniglot", "MiniImagenet"]

_PARTS = ("images_background", "images_evaluation")
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_Function = Callable[[Any], Any]


class _Labelled(Dataset[Any]):
    """uint8 images `(n, C, H, W)` with int labels, and transforms of both."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        transform: _Function | None,
        target_transform: _Function | None,
    ) -> None:
        self.images = images
        self.labels: list[int] = labels.tolist()
        self.transform = transform
        self.target_transform = target_transform

    @property
    def indices_to_labels(self) -> Mapping[int, Any]:
        """Lets `MetaDataset` read the labels without loading the images."""
        return {i: self._label(i) for i in range(len(self))}

    def _image(self, i: int) -> Any:
        pixels = self.images[i]
        array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        return pillow().fromarray(array.contiguous().numpy())

    def _label(self, i: int) -> Any:
        label = self.labels[i]
        return label if self.target_transform is None else self.target_transform(label)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        image = self._image(i)
        return (image if self.transform is None else self.transform(image)), self._label(i)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self.labels)


class FullOmniglot(_Labelled):
    """All 1,623 characters of Omniglot, as 105x105 Pillow images with ink 0 on background 255.

    The images are kept in memory (360 MB).

    Args:
        root: the folder that contains torchvision's `omniglot-py/` or `omniglot/`, with
            `images_background` and `images_evaluation` as folders or `.zip`.
        transform: applied to each image.
        target_transform: applied to each label.
        download: ignored.

    Raises:
        DataError: if files are missing or corrupt.
        ImportError: if Pillow is missing.
    """

    def __init__(
        self,
        root: str | Path,
        transform: _Function | None = None,
        target_transform: _Function | None = None,
        download: bool = False,
    ) -> None:
        root = Path(root).expanduser()
        name = "omniglot-py" if (root / "omniglot-py").is_dir() else "omniglot"
        folder = find_folder(
            root, name, [f"{part}{end}" for part in _PARTS for end in ("", ".zip")], SOURCE
        )
        first, second = (read_part(folder, part, SIDE, use_cache=True) for part in _PARTS)
        labels = [first["labels"], second["labels"] + len(first["characters"])]
        super().__init__(
            255
            - torch.cat([torch.from_numpy(part["images"]) for part in (first, second)])[:, None],
            torch.cat([torch.from_numpy(part) for part in labels]),
            transform,
            target_transform,
        )


class CIFARFS(_Labelled):
    """A split of CIFAR-FS, as 32x32 Pillow images; see [`fastmeta.data.load_cifar_fs`][].

    Args:
        root: the folder that contains `cifar-100-python` and `splits/cifar-fs`.
        mode: `"train"`, `"validation"` or `"test"`.
        transform: applied to each image.
        target_transform: applied to each label.
        download: ignored.

    Raises:
        DataError: if files are missing or corrupt.
        ValueError: if the mode is unknown.
    """

    _load = staticmethod(load_cifar_fs)

    def __init__(
        self,
        root: str | Path,
        mode: str = "train",
        transform: _Function | None = None,
        target_transform: _Function | None = None,
        download: bool = False,
    ) -> None:
        found = self._load(root, _split(mode))
        super().__init__(found.images, found.labels, transform, target_transform)


class FC100(CIFARFS):
    """A split of FC100, read as `CIFARFS` but with the splits of `splits/fc100`."""

    _load = staticmethod(load_fc100)


class MiniImagenet(_Labelled):
    """A split of mini-ImageNet, as tensors `(3, 84, 84)` from 0 to 255.

    See [`fastmeta.data.load_mini_imagenet`][] for the files.

    Args:
        root: the folder of the files, or the one that contains it as `mini-imagenet/`.
        mode: `"train"`, `"validation"` or `"test"`.
        transform: applied to each image.
        target_transform: applied to each label.
        download: ignored.

    Raises:
        DataError: if files are missing or corrupt.
        ValueError: if the mode is unknown.
    """

    def __init__(
        self,
        root: str | Path,
        mode: str = "train",
        transform: _Function | None = None,
        target_transform: _Function | None = None,
        download: bool = False,
    ) -> None:
        found = load_mini_imagenet(root, _split(mode))
        super().__init__(found.images, found.labels, transform, target_transform)

    def _image(self, i: int) -> Tensor:
        return self.images[i].float()


def _split(mode: str) -> str:
    if mode not in _SPLITS:
        raise ValueError(f"mode must be one of {', '.join(_SPLITS)}; got {mode!r}.")
    return _SPLITS[mode]
