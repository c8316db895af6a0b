"""Image data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmeta.data.classes import ClassDataset
from fastmeta.data.digits import load_digits
from fastmeta.data.folders import data_root
from fastmeta.data.mnist import load_mnist
from fastmeta.data.omniglot import load_omniglot

_FROM_FILES: dict[str, Callable[..., ClassDataset]] = {
    "fashion-mnist": lambda root, split, **options: load_mnist(
        root, split, name="fashion-mnist", **options
    ),
    "mnist": load_mnist,
    "omniglot": load_omniglot,
}

DATASETS = ("digits", *_FROM_FILES)


def load(name: str, split: str, root: str | Path | None = None, **options: Any) -> ClassDataset:
    """Loads a data set of images by name.

    Args:
        name: one of ``DATASETS``: ``"digits"`` needs no files; ``"mnist"``, ``"fashion-mnist"``
            and ``"omniglot"`` do.
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: the folder of the data sets; by default the one the environment variable
            ``FASTMETA_DATA`` names. "digits" does not read it.
        options: of :func:`load_digits`, :func:`load_mnist` or :func:`load_omniglot`.

    Raises:
        DataError: if files are missing, truncated or corrupt, or no root is known.
        ImportError: if an optional package is missing.
        ValueError: if a name or an option is not valid.
    """
    if name == "digits":
        return load_digits(split, **options)
    if name not in _FROM_FILES:
        raise ValueError(
            f"name must be one of {', '.join(DATASETS)}; got {name!r}. "
            "Regression tasks need no data set: see SineTasks."
        )
    return _FROM_FILES[name](data_root(root), split, **options)
