"""Errors that the user can fix; the command line prints their message without a traceback."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from fastmeta._errors import UserError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DamagedError",
    "DivergedError",
    "MissingPackageError",
    "StorageError",
    "UserError",
    "explained",
    "require",
]


class ConfigError(UserError, ValueError):
    """An option is unknown, has the wrong type or value, or does not fit the others."""


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing, damaged or not one of fastmeta."""


class DamagedError(CheckpointError):
    """A checkpoint differs from what was written."""


class StorageError(UserError, OSError):
    """A file cannot be written, such as on a full disk or without permission."""


class DivergedError(UserError, FloatingPointError):
    """A loss or a score is not finite."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed."""


def require(module: str, purpose: str, *, package: str | None = None, extra: str = "train") -> None:
    """Checks that an optional package is installed before work begins that will need it.

    Args:
        module: its import name.
        purpose: what needs it, the subject of the message.
        package: its name for pip, if that differs.
        extra: the extra of fastmeta that installs it.

    Raises:
        MissingPackageError: if it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingPackageError(
            f"{purpose} needs {package or module}, which is not installed: "
            f'pip install "fastmeta[{extra}]"'
        )


@contextmanager
def explained(subject: str) -> Iterator[None]:
    """Turns errors about files, and about arguments from the configuration, into user errors.

    Args:
        subject: what they are about, the start of the message.

    Raises:
        ConfigError: in place of other errors.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"{subject}: {error}") from error
