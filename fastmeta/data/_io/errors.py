"""Errors of data files, with a uniform message."""

from __future__ import annotations

from pathlib import Path

_MAX_LENGTH = 500


class DataError(ValueError):
    """A file or folder of a dataset is missing, truncated, corrupt or of an unexpected format.

    The message names the file, what was expected, what was found and how to fix it.
    """


def data_error(where: Path | str, *, expected: str, found: str, fix: str) -> DataError:
    """A [`DataError`][fastmeta.data.DataError] with all four parts of its message.

    `found` is truncated: it may be quoted from an invalid file.
    """
    if len(found) > _MAX_LENGTH:
        found = f"{found[:_MAX_LENGTH]}..."
    return DataError(f"{where}: expected {expected}; found {found}. {fix}")


def missing_package(package: str, purpose: str) -> ImportError:
    """An `ImportError` for a missing optional package, with its purpose and the pip command."""
    return ImportError(
        f'{purpose} needs {package}, which is not installed: pip install "fastmeta[train]"'
    )
