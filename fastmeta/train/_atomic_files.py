"""Files that are there whole or not at all."""

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
    """Writes a file so that a crash at any moment leaves the old one or the new one.

    The content goes to a temporary file in the same folder, to the disk, and then in place.

    Args:
        path: of the file; its folder is made if there is none.
        write: writes the content to a binary file; what it returns is ignored.

    Raises:
        StorageError: if it cannot be written; the old file is as it was.
    """
    with written(path):
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
    """Removes what processes that were killed while writing have left in a folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Makes errors of the operating system in writing ``path`` the user's."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). Nothing written before is "
            "lost. Free space or fix the permissions; a run goes on from its last checkpoint "
            "with --resume."
        ) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` as JSON, atomically.

    Raises:
        ValueError: if it holds a number that JSON has not, such as NaN.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    # The new name itself must reach the disk; only POSIX can open a folder.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
