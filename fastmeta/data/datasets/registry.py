"""Datasets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastmeta.data._io.folders import ROOT_VARIABLE, data_root
from fastmeta.data.dataset import EpisodeDataset
from fastmeta.data.datasets._cifar_files import ARCHIVE, FOLDER
from fastmeta.data.datasets.cifar import load_cifar_fs, load_fc100
from fastmeta.data.datasets.digits import load_digits
from fastmeta.data.datasets.intents import load_banking77, load_clinc150
from fastmeta.data.datasets.mini_imagenet import load_mini_imagenet
from fastmeta.data.datasets.mnist import load_mnist
from fastmeta.data.datasets.omniglot import load_omniglot
from fastmeta.data.datasets.planetoid import load_planetoid
from fastmeta.registry import Registry

_TEXTS: dict[str, Callable[..., EpisodeDataset]] = {
    "banking77": load_banking77,
    "clinc150": load_clinc150,
}
_NODES: dict[str, Callable[..., EpisodeDataset]] = {
    "citeseer": partial(load_planetoid, name="citeseer"),
    "cora": partial(load_planetoid, name="cora"),
}
_FROM_FILES: dict[str, Callable[..., EpisodeDataset]] = {
    "cifar-fs": load_cifar_fs,
    "fashion-mnist": lambda root, split, **options: load_mnist(
        root, split, name="fashion-mnist", **options
    ),
    "fc100": load_fc100,
    "mini-imagenet": load_mini_imagenet,
    "mnist": load_mnist,
    "omniglot": load_omniglot,
    **_TEXTS,
    **_NODES,
}

_LOADERS: dict[str, Callable[..., EpisodeDataset]] = {
    "digits": lambda _root, split, **options: load_digits(split, **options),
    **_FROM_FILES,
}

DATASETS = tuple(_LOADERS)
TEXTS, NODES = tuple(_TEXTS), tuple(_NODES)

# Paths of the files, if not in a folder of the dataset's name.
_PLACES = {
    "cifar-fs": (FOLDER, ARCHIVE),
    "fc100": (FOLDER, ARCHIVE),
    **dict.fromkeys(NODES, ("planetoid",)),
}


def datasets_in(root: str | Path) -> list[str]:
    """The names of the datasets with files in ``root``."""
    places = {name: _PLACES.get(name, (name,)) for name in _FROM_FILES}
    return [n for n, paths in places.items() if any((Path(root) / p).exists() for p in paths)]


def load(name: str, split: str, root: str | Path | None = None, **options: Any) -> EpisodeDataset:
    """Loads a dataset by name.

    Args:
        name: one of ``DATASETS``, of which ``TEXTS`` are texts, ``NODES`` nodes of a graph and the
            others images; or the name of a plug-in. ``"digits"`` needs no files.
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: the folder of the datasets; by default that of the environment variable
            ``FASTMETA_DATA``. "digits" does not use it; a plug-in may not need it.
        options: options of the loader: :func:`load_digits`, :func:`load_mnist`,
            :func:`load_omniglot`, :func:`load_mini_imagenet`, :func:`load_cifar_fs`,
            :func:`load_fc100`, :func:`load_clinc150`, :func:`load_banking77` or
            :func:`load_planetoid`.

    Raises:
        PluginError: if the name is that of a plug-in that cannot be used.
        DataError: if files are missing, truncated or corrupt, or no root is given.
        ImportError: if an optional package is missing.
        ValueError: if a name or an option is invalid.
    """
    registry = Registry("dataset", _LOADERS)
    if name not in registry:
        raise ValueError(
            f"name must be one of {', '.join(registry)}; got {name!r}. "
            "Regression tasks need no dataset: see SineTasks."
        )
    folder = data_root(root) if name in _FROM_FILES else root or os.environ.get(ROOT_VARIABLE)
    return registry.find(name)(folder, split, **options)
