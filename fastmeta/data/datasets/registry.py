"""Datasets by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastmeta._checks import check_choice
from fastmeta._options import check_options, construct, forwards_options, named
from fastmeta.data._io.errors import data_error
from fastmeta.data._io.folders import ROOT_VARIABLE, data_root
from fastmeta.data._own_splits import Splits
from fastmeta.data.dataset import EpisodeDataset
from fastmeta.data.datasets._cifar_files import ARCHIVE, FOLDER
from fastmeta.data.datasets.cifar import load_cifar_fs, load_fc100
from fastmeta.data.datasets.digits import load_digits
from fastmeta.data.datasets.features import features_splits, load_features
from fastmeta.data.datasets.folder import folder_splits, load_folder
from fastmeta.data.datasets.glyphs import load_glyphs
from fastmeta.data.datasets.intents import load_banking77, load_clinc150
from fastmeta.data.datasets.mini_imagenet import load_mini_imagenet
from fastmeta.data.datasets.mnist import load_mnist
from fastmeta.data.datasets.omniglot import load_omniglot
from fastmeta.data.datasets.own_texts import csv_splits, load_csv
from fastmeta.data.datasets.planetoid import load_planetoid
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.image_regression import downsampled
from fastmeta.data.sine import SineTasks
from fastmeta.data.task_source import TaskSource
from fastmeta.registry import Registry

Kind = Literal["images", "texts", "nodes", "features", "regression", "signals"]


@dataclass(frozen=True)
class DatasetSpec:
    """What is known about a dataset: either it is loaded, or its tasks are generated.

    Attributes:
        kind: of its inputs and targets, `None` if unknown; all but `"regression"` and `"signals"`
            (images whose pixels are regressed from their coordinates) are classes.
        loader: from a folder (or `None`), a split and options to the dataset.
        generator: from `(tasks, shots, queries, seed, device=..., **options)` to tasks.
        files: paths in the folder of the datasets, one of which holds the data; none are needed if
            this is empty.
        preset: name of the default options of a training run.
        splits: of the user's own data, from their folder or file, the examples that a held-out
            class needs and the options of the loader to the names of the classes of each split,
            which are saved with a run.
    """

    kind: Kind | None = None
    loader: Callable[..., EpisodeDataset] | None = None
    generator: Callable[..., TaskSource] | None = None
    files: tuple[str, ...] = ()
    preset: str = "unknown"
    splits: Callable[[Path, int, Mapping[str, Any]], Splits] | None = None


_CIFAR = (FOLDER, ARCHIVE)
_fashion_mnist = partial(load_mnist, name="fashion-mnist")
_citeseer = partial(load_planetoid, name="citeseer")
_cora = partial(load_planetoid, name="cora")


@forwards_options(lambda given: load_digits)
def _digits(root: str | Path | None, split: str, **options: Any) -> EpisodeDataset:
    """1,797 digits of 8x8 pixels from scikit-learn; needs no files."""
    return load_digits(split, **options)


@forwards_options(lambda given: load_glyphs)
def _glyphs(root: str | Path | None, split: str, **options: Any) -> EpisodeDataset:
    """Characters of many scripts in the fonts of matplotlib; needs no files."""
    return load_glyphs(split, **options)


_IMAGES = {
    "glyphs": DatasetSpec("images", _glyphs, preset="glyphs"),
    "digits": DatasetSpec("images", _digits, preset="digits"),
    "cifar-fs": DatasetSpec("images", load_cifar_fs, files=_CIFAR, preset="photos"),
    "fashion-mnist": DatasetSpec(
        "images", _fashion_mnist, files=("fashion-mnist",), preset="mnist"
    ),
    "fc100": DatasetSpec("images", load_fc100, files=_CIFAR, preset="photos"),
    "mini-imagenet": DatasetSpec(
        "images", load_mini_imagenet, files=("mini-imagenet",), preset="mini-imagenet"
    ),
    "mnist": DatasetSpec("images", load_mnist, files=("mnist",), preset="mnist"),
    "omniglot": DatasetSpec("images", load_omniglot, files=("omniglot",), preset="omniglot"),
}
_LOADERS = {name: spec.loader for name, spec in _IMAGES.items() if spec.loader is not None}


@forwards_options(named(_LOADERS, "of", "glyphs"))
def _image_regression(
    root: str | Path | None,
    split: str,
    *,
    of: str = "glyphs",
    size: int | None = None,
    **options: Any,
) -> EpisodeDataset:
    """Images whose pixels are regressed from their coordinates, one task per image.

    Args:
        root: the folder of the datasets.
        split: train, val or test.
        of: name of the dataset of images, whose options are accepted, too.
        size: height and width after averaging neighbouring pixels; unchanged by default.
        **options: of its loader.
    """
    check_choice("of", of, _IMAGES)
    found = load(of, split, root, **options)
    assert isinstance(found, ClassDataset)
    return found if size is None else downsampled(found, size)


def _from_plugin(loader: Callable[..., EpisodeDataset]) -> DatasetSpec:
    return DatasetSpec(loader=loader)


DATASETS: Registry[DatasetSpec] = Registry(
    "dataset",
    {
        **_IMAGES,
        "banking77": DatasetSpec("texts", load_banking77, files=("banking77",), preset="texts"),
        "clinc150": DatasetSpec("texts", load_clinc150, files=("clinc150",), preset="texts"),
        "citeseer": DatasetSpec("nodes", _citeseer, files=("planetoid",), preset="nodes"),
        "cora": DatasetSpec("nodes", _cora, files=("planetoid",), preset="nodes"),
        "folder": DatasetSpec("images", load_folder, preset="folder", splits=folder_splits),
        "csv": DatasetSpec("texts", load_csv, preset="texts", splits=csv_splits),
        "features": DatasetSpec(
            "features", load_features, preset="features", splits=features_splits
        ),
        "image-regression": DatasetSpec("signals", _image_regression, preset="signals"),
        "sine": DatasetSpec("regression", generator=SineTasks, preset="sine"),
    },
    convert=_from_plugin,
)
"""The datasets by name; a plug-in provides the loader of a `DatasetSpec`."""


def datasets_in(root: str | Path) -> list[str]:
    """The datasets with files in `root`."""
    return [
        name
        for name, spec in DATASETS.own.items()
        if any((Path(root) / path).exists() for path in spec.files)
    ]


def own_root(name: str, root: str | Path | None) -> Path:
    """The folder or file of the user's own data, which has to be given.

    Raises:
        DataError: if it is not.
    """
    if not root:
        raise data_error(
            "data root",
            expected=f"the folder or file of your data, for dataset {name!r}",
            found="none",
            fix="Pass root=... (--data-root PATH).",
        )
    return Path(root).expanduser()


def class_splits(
    name: str, root: str | Path | None, options: Mapping[str, Any], minimum: int = 1
) -> Splits | None:
    """The names of the classes of each split of the user's own data.

    Args:
        name: of the dataset.
        root: the folder or file.
        options: of the loader.
        minimum: examples that a class needs to be drawn for validation or test.

    Returns:
        By split; `None` for datasets whose splits do not depend on files.

    Raises:
        DataError: if files are missing, or there are too few classes.
    """
    spec = DATASETS[name]
    if spec.splits is None:
        return None
    check_options(f"dataset {name!r}", spec.loader or spec.splits, options, ("root", "split"))
    return spec.splits(own_root(name, root), minimum, options)


def load(name: str, split: str, root: str | Path | None = None, **options: Any) -> EpisodeDataset:
    """Loads a dataset by name.

    Args:
        name: one of [`DATASETS`][fastmeta.data.DATASETS] that is not generated; `"glyphs"` and
            `"digits"` need no files.
        split: `"train"`, `"val"` or `"test"`.
        root: the folder of the datasets; by default the one that the environment variable
            `FASTMETA_DATA` names. These ignore it; a plug-in may do without.
        options: of the loader: [`load_digits`][fastmeta.data.load_digits],
            [`load_mnist`][fastmeta.data.load_mnist],
            [`load_omniglot`][fastmeta.data.load_omniglot],
            [`load_mini_imagenet`][fastmeta.data.load_mini_imagenet],
            [`load_cifar_fs`][fastmeta.data.load_cifar_fs],
            [`load_fc100`][fastmeta.data.load_fc100],
            [`load_clinc150`][fastmeta.data.load_clinc150],
            [`load_banking77`][fastmeta.data.load_banking77] or
            [`load_planetoid`][fastmeta.data.load_planetoid], or for your own data
            [`load_folder`][fastmeta.data.load_folder], [`load_csv`][fastmeta.data.load_csv] or
            [`load_features`][fastmeta.data.load_features].

    Raises:
        PluginError: if the name is that of a plug-in that cannot be used.
        DataError: if files are missing, truncated or corrupt, or no root is given.
        ImportError: if an optional package is missing.
        ValueError: if a name or the value of an option is invalid.
        TypeError: if the loader has no such option.
    """
    spec = DATASETS[name]
    if spec.loader is None:
        raise ValueError(
            f"{name!r} is no dataset that is loaded: its tasks are generated, see "
            f"fastmeta.data.DATASETS[{name!r}].generator."
        )
    if spec.splits is not None:
        folder: str | Path | None = own_root(name, root)
    else:
        folder = data_root(root) if spec.files else root or os.environ.get(ROOT_VARIABLE)
    found: EpisodeDataset = construct(f"dataset {name!r}", spec.loader, options, folder, split)
    return found
