"""Locations of datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastmeta.data._io.errors import data_error

ROOT_VARIABLE = "FASTMETA_DATA"


def data_root(root: str | Path | None) -> Path:
    """`root`, or else the folder of the environment variable `FASTMETA_DATA`.

    Raises:
        DataError: if neither is given.
    """
    chosen = root or os.environ.get(ROOT_VARIABLE)
    if not chosen:
        raise data_error(
            "data root",
            expected="a folder with the datasets",
            found=f"neither root nor the environment variable {ROOT_VARIABLE}",
            fix=f"Pass root=..., or set {ROOT_VARIABLE}.",
        )
    return Path(chosen).expanduser()


def find_folder(root: str | Path, name: str, markers: Sequence[str], fix: str) -> Path:
    """`root/name` or else `root`, whichever contains one of `markers`.

    Raises:
        DataError: if neither does.
    """
    root = Path(root).expanduser()
    for folder in (root / name, root):
        if any((folder / marker).exists() for marker in markers):
            return folder
    raise data_error(
        root,
        expected=f"{' or '.join(markers)} here or in {name}/",
        found="neither" if root.is_dir() else "no such folder",
        fix=fix,
    )
