"""A user's own features: a NumPy or safetensors file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmeta.data._io.errors import data_error, missing_package
from fastmeta.data._own_splits import Splits, find_parts, split_own
from fastmeta.data.feature_dataset import FeatureDataset
from fastmeta.data.splits import check_split

SUFFIXES = (".npz", ".safetensors")
_KEYS = ("features", "labels")

Array = NDArray[Any]


def load_features(
    root: str | Path,
    split: str,
    *,
    standardize: bool = True,
    split_seed: int = 0,
    merge: bool = False,
    train_classes: Sequence[str] | None = None,
    val_classes: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
) -> FeatureDataset:
    """Loads `features` `(n, *input)` and `labels` `(n,)` from a `.npz` or `.safetensors` file.

    Labels are integers, or in NumPy files strings; their text is the name of the class. Classes
    are split as by [`fastmeta.data.load_folder`][]; `train`, `val` and `test` are files such as
    `train.npz`.

    Args:
        root: the file, or a folder of one file or of `train`, `val` and `test`.
        split: `"train"`, `"val"` or `"test"`.
        standardize: whether to scale each feature to mean 0 and standard deviation 1 over the
            training classes.
        split_seed: see [`fastmeta.data.load_folder`][], as all that follow.
        merge: whether to pool the files and split the classes by seed.
        train_classes: names of the training classes, instead of all that are not held out.
        val_classes: names of the validation classes, instead of a split by seed.
        test_classes: names of the test classes, instead of a split by seed.

    Returns:
        Features `(n, *input)`, float32.

    Raises:
        DataError: if a file is missing or not valid, or there are too few classes.
        ImportError: if safetensors is needed and missing.
        ValueError: if an argument is out of range.
    """
    check_split(split)
    where = Path(root).expanduser()
    found = _read(where)
    splits = split_own(
        where,
        {part: Counter(labels.tolist()) for part, (_, labels) in found.items()},
        split_seed=split_seed,
        merge=merge,
        train_classes=train_classes,
        val_classes=val_classes,
        test_classes=test_classes,
    )
    features = np.concatenate([part for part, _ in found.values()]).astype(np.float32)
    names = np.concatenate([labels for _, labels in found.values()])
    if standardize:
        training = features[np.isin(names, splits["train"])]
        deviation = training.std(0)
        features = (features - training.mean(0)) / np.where(deviation > 0, deviation, 1)
    rows = [np.flatnonzero(names == name) for name in splits[split]]
    labels = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    chosen = np.ascontiguousarray(features[np.concatenate(rows)], dtype=np.float32)
    return FeatureDataset(torch.from_numpy(chosen), labels, splits[split])


def features_splits(root: Path, minimum: int, options: Mapping[str, Any]) -> Splits:
    """The names of the classes of each split, see [`fastmeta.data.class_splits`][]."""
    found = {part: Counter(labels.tolist()) for part, (_, labels) in _read(root).items()}
    return split_own(root, found, minimum=minimum, **options)


def _read(root: Path) -> dict[str, tuple[Array, Array]]:
    """Features and names of classes, by `"train"`, `"val"` and `"test"`, or of one file."""
    files = find_parts(root, SUFFIXES, "a .npz or .safetensors file of features")
    found = {part: _checked(file, *_arrays(file)) for part, file in files.items()}
    shapes = {features.shape[1:] for features, _ in found.values()}
    if len(shapes) > 1:
        raise data_error(
            root,
            expected="features of one shape in all files",
            found=", ".join(map(str, sorted(shapes))),
            fix="Compute them by the same network.",
        )
    return found


def _arrays(file: Path) -> tuple[Array, Array]:
    read = _read_npz if file.suffix.lower() == ".npz" else _safetensors_reader()
    try:
        held = read(file)
    except Exception as error:  # a damaged file may raise anything
        raise data_error(
            file, expected="an intact file", found=f"{error}", fix="Write it again."
        ) from error
    if not {*_KEYS} <= {*held}:
        raise data_error(
            file,
            expected="the arrays 'features' and 'labels'",
            found=", ".join(map(repr, held)) or "none",
            fix="Save it with numpy.savez(file, features=..., labels=...).",
        )
    return held["features"], held["labels"]


def _read_npz(file: Path) -> dict[str, Array]:
    # np.load leaks the file if it is not a zip archive, so open it here.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _safetensors_reader() -> Callable[[Path], dict[str, Array]]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise missing_package("safetensors", "A safetensors file") from error
    return load_file


def _checked(file: Path, features: Array, labels: Array) -> tuple[Array, Array]:
    valid = features.ndim >= 2 and np.issubdtype(features.dtype, np.number)
    if not valid or labels.shape != features.shape[:1] or labels.dtype.kind not in "iuU":
        raise data_error(
            file,
            expected="numeric features (n, *input) and integer or string labels (n,)",
            found=f"{features.dtype} {features.shape} and {labels.dtype} {labels.shape}",
            fix="Save one row of features and one label per example.",
        )
    if not np.isfinite(features).all():
        raise data_error(
            file,
            expected="finite features",
            found="NaN or infinite ones",
            fix="Replace missing values.",
        )
    return features, labels.astype(str)
