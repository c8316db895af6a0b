"""Data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastmeta._options import construct, forwards_options
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


@forwards_options(lambda given: load_digits)
def _digits(root: object, split: str, **options: Any) -> EpisodeDataset:
    """1,797 digits of 8x8 pixels from scikit-learn; needs no files."""
    return load_digits(split, **options)


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
    "fashion-mnist": partial(load_mnist, name="fashion-mnist"),
    "fc100": load_fc100,
    "mini-imagenet": load_mini_imagenet,
    "mnist": load_mnist,
    "omniglot": load_omniglot,
    **_TEXTS,
    **_NODES,
}

_LOADERS: dict[str, Callable[..., EpisodeDataset]] = {
    "digits": _digits,
    **_FROM_FILES,
}

DATASETS = tuple(_LOADERS)
TEXTS, NODES = tuple(_TEXTS), tuple(_NODES)

# Where the files are, if not in a folder of the data set's name.
_PLACES = {
    "cifar-fs": (FOLDER, ARCHIVE),
    "fc100": (FOLDER, ARCHIVE),
    **dict.fromkeys(NODES, ("planetoid",)),
}


def datasets_in(root: str | Path) -> list[str]:
    """The data sets with files in ``root``."""
    places = {name: _PLACES.get(name, (name,)) for name in _FROM_FILES}
    return [n for n, paths in places.items() if any((Path(root) / p).exists() for p in paths)]


def load(name: str, split: str, root: str | Path | None = None, **options: Any) -> EpisodeDataset:
    """Loads a data set by name.

    Args:
        name: one of ``DATASETS``, of which ``TEXTS`` are of texts, ``NODES`` of nodes of a graph,
            the others of images; or a plug-in's. ``"digits"`` needs no files.
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: the folder of the data sets; by default the one the environment variable
            ``FASTMETA_DATA`` names. "digits" does not read it; a plug-in may be without.
        options: of the loader: :func:`load_digits`, :func:`load_mnist`, :func:`load_omniglot`,
            :func:`load_mini_imagenet`, :func:`load_cifar_fs`, :func:`load_fc100`,
            :func:`load_clinc150`, :func:`load_banking77` or :func:`load_planetoid`.

    Raises:
        PluginError: if the name is a plug-in's that cannot be used.
        DataError: if files are missing, truncated or corrupt, or no root is known.
        ImportError: if an optional package is missing.
        ValueError: if a name or the value of an option is not valid.
        TypeError: if the loader has no such option.
    """
    registry = Registry("dataset", _LOADERS)
    if name not in registry:
        raise ValueError(
            f"name must be one of {', '.join(registry)}; got {name!r}. "
            "Regression tasks need no data set: see SineTasks."
        )
    folder = data_root(root) if name in _FROM_FILES else root or os.environ.get(ROOT_VARIABLE)
    loader = registry.find(name)
    dataset: EpisodeDataset = construct(f"data set {name!r}", loader, options, folder, split)
    return dataset
