"""Errors that the user can fix; the command line shows their message without a traceback."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """Something in the options, the files or the environment; the message says how to fix it."""


class ConfigError(UserError, ValueError):
    """An option is unknown, has the wrong type or value, or does not fit the others."""


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing, damaged or not ours."""


class DamagedError(CheckpointError):
    """A checkpoint does not hold what was written."""


class StorageError(UserError, OSError):
    """A file cannot be written: the disk is full, or it may not be."""


class DivergedError(UserError, FloatingPointError):
    """The loss is no longer finite."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed."""


def require(module: str, purpose: str, *, package: str | None = None, extra: str = "train") -> None:
    """Makes sure an optional package is there before work begins that would need it later.

    Args:
        module: its import name.
        purpose: what needs it, the subject of the message.
        package: its name for pip, if that differs.
        extra: the extra of fastmeta that brings it.

    Raises:
        MissingPackageError: if it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingPackageError(
            f"{purpose} needs {package or module}, which is not installed: "
            f'pip install "fastmeta[{extra}]"'
        )
