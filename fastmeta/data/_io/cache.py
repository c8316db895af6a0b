"""On-disk cache of arrays that are slow to compute."""

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
    """The folder `FASTMETA_CACHE` names, or `~/.cache/fastmeta`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/fastmeta").expanduser()


def cached(name: str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of `build`, read from the cache file `name`.npz if its key is `key`.

    A file with another key or a wrong checksum is rebuilt and replaced atomically, so that
    processes may share the folder. A folder that is not writable is a warning, not an error.

    Args:
        name: name of the file, the same for all versions of one source.
        key: key that changes whenever the source or the processing does.
        build: computes the arrays; none may be named `key` or contain objects.
    """
    path = cache_folder() / f"{name}.npz"
    arrays = _read(path, key)
    if arrays is None:
        arrays = build()
        _write(path, key, arrays)
    return arrays


def path_hash(source: Path) -> str:
    """A short hash of the path of `source`: copies elsewhere have their own cache files."""
    return hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and modification times of `files`."""
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
                _log.info("%s was built from another source: rebuilding it", path)
                return None
            # Reading an array to the end checks its CRC-32.
            return {name: stored[name] for name in stored.files if name != "key"}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be used (%s): rebuilding it", path, error)
        return None


def _write(path: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    # Not tempfile, whose files only their owner can read: users may share the folder.
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
            f"could not write {path} ({error}); the dataset will be decoded again next time. "
            f"Set {CACHE_VARIABLE} to a writable folder.",
            RuntimeWarning,
            stacklevel=3,
        )
