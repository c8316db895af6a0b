"""Default options that depend on the dataset and the method, read from the files beside this one.

`datasets.toml` has the options of each preset, of which a dataset names one
([`fastmeta.data.DatasetSpec`][]); `methods.toml` has what methods change.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastmeta.data import DATASETS, DatasetSpec
from fastmeta.learners import METHODS, MethodSpec
from fastmeta.train.config._toml import parse_toml


def defaults_for(dataset: str, method: str) -> dict[str, Any]:
    """The options that depend on dataset and method.

    Unknown names are left for [`fastmeta.train.TrainConfig`][] to refuse.

    Raises:
        MissingPackageError: on Python 3.10, if tomli is missing.
        PluginError: if a name is a plug-in's that cannot be used.
    """
    data = DATASETS[dataset] if dataset in DATASETS else DatasetSpec()
    preset, changes = _preset(data.preset), _table("methods")
    if method not in METHODS:
        return {**preset, **MethodSpec()._asdict()}
    return {
        **preset,
        **METHODS[method]._asdict(),
        **changes.get(method, {}),
        **changes.get(f"{method} on {preset['backbone']}", {}),
    }


def _preset(name: str) -> dict[str, Any]:
    own = dict(_table("datasets")[name])
    base = own.pop("extends", None)
    return own if base is None else {**_preset(base), **own}


@cache
def _table(name: str) -> dict[str, Any]:
    text = Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8")
    return parse_toml(text)
