"""TOML on all versions of Python."""

from __future__ import annotations

import sys
from typing import Any

from fastmeta.train.errors import require


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML document.

    Raises:
        MissingPackageError: on Python 3.10, if tomli is missing.
        ValueError: if it is not valid TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        require("tomli", "TOML on Python 3.10")
        import tomli as tomllib
    content: dict[str, Any] = tomllib.loads(text)
    return content
