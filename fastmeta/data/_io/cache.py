"""Arrays that are slow to make, kept on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_VARIABLE = "FASTMETA_CACHE"

Arrays = dict[str, NDArray[Any]]

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder ``FASTMETA_CACHE`` names, or ``~/.cache/fastmeta``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/fastmeta").expanduser()


def cached(name: str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """What ``build`` returns, from the cache file ``name``.npz when that was made for ``key``.

    A file with another key or a wrong checksum is built anew and replaced in one step, so that
    processes may share the folder. A folder that cannot be written to is a warning, not an error.

    Args:
        name: of the file, the same for all versions of one source.
        key: changes whenever the source or the processing does.
        build: makes the arrays; none may be called ``key`` or hold objects.
    """
    path = cache_folder() / f"{name}.npz"
    arrays = _read(path, key)
    if arrays is None:
        arrays = build()
        _write(path, key, arrays)
    return arrays


def place(source: Path) -> str:
    """A short word for where ``source`` lies, to tell the cache files of equal sources apart."""
    return hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]


def fingerprint(files: Iterable[Path]) -> str:
    """A word that changes with the name, the size or the time of any of ``files``."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> Arrays | None:
    try:
        # np.load leaks the file if it is not a zip archive, so open it here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                _log.info("%s was made from another source: making it anew", path)
                return None
            # Reading an array to its end checks its CRC-32.
            return {name: stored[name] for name in stored.files if name != "key"}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be used (%s): making it anew", path, error)
        return None


def _write(path: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    # Not tempfile, whose files nobody else may read: users may share the folder.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    contents: dict[str, Any] = {"key": np.array(key), **arrays}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.savez(file, **contents)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"could not keep {path} ({error}); the data set will be decoded again next time. "
            f"Set {CACHE_VARIABLE} to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=3,
        )
