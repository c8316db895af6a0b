"""What goes wrong with data, said in one way."""

from __future__ import annotations

from pathlib import Path

_LONGEST = 500


class DataError(ValueError):
    """A file or folder of a data set is missing, truncated, corrupt or not what it should be.

    The message names the file, what was expected, what was found and how to fix it.
    """


def data_error(where: Path | str, *, expected: str, found: str, fix: str) -> DataError:
    """A :class:`DataError` with all four parts of its message.

    What was found is cut short: it may be quoted from a file that is not what it should be.
    """
    if len(found) > _LONGEST:
        found = f"{found[:_LONGEST]}..."
    return DataError(f"{where}: expected {expected}; found {found}. {fix}")


def missing_package(package: str, purpose: str) -> ImportError:
    """An ``ImportError`` that says what needs the optional ``package`` and how to get it."""
    return ImportError(
        f'{purpose} needs {package}, which is not installed: pip install "fastmeta[train]"'
    )
