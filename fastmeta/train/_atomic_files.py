"""Atomic file writes."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fastmeta.train.errors import StorageError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that a crash at any time leaves either the old file or the new one.

    The content is written to a temporary file in the same folder, synced to disk and renamed.

    Args:
        path: of the file; its folder is created if necessary.
        write: writes the content to a binary file; its result is ignored.

    Raises:
        StorageError: if it cannot be written; the old file is unchanged.
    """
    with reporting_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Removes temporary files left in a folder by processes that were killed while writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def reporting_os_errors(path: Path) -> Iterator[None]:
    """Turns errors of the operating system while writing `path` into `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). Nothing written before is "
            "lost. Free space or fix the permissions; --resume continues a run from its last "
            "checkpoint."
        ) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` as JSON, atomically.

    Raises:
        ValueError: if it holds a number that JSON does not have, such as NaN.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; only POSIX can open a folder.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
