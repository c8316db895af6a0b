"""Options from TOML, YAML and JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmeta.train.config._toml import parse_toml
from fastmeta.train.config.schema import check_names
from fastmeta.train.errors import ConfigError, require


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a `.toml`, `.yaml`, `.yml` or `.json` file.

    Args:
        path: of the file; options such as `data_options` are tables in it.

    Raises:
        ConfigError: if the file is missing, is not valid, has another format or an unknown option.
        MissingPackageError: if it is YAML and PyYAML is missing.
    """
    options = read_table(Path(path).expanduser())
    check_names(options, str(path))
    return options


def read_table(path: Path) -> dict[str, Any]:
    """The content of such a file, whatever its keys; raises as `read_config`."""
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(f"{path}: expected a {', '.join(_PARSERS)} file.")
    try:
        options = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8 ({error}).") from error
    except _SyntaxError as error:
        raise ConfigError(f"{path}: {error}") from error
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: expected a table of options; got {type(options).__name__}.")
    return {str(name): value for name, value in options.items()}


class _SyntaxError(Exception):
    pass


def _toml(text: str) -> Any:
    try:
        return parse_toml(text)
    except ValueError as error:
        raise _SyntaxError(f"not valid TOML: {error}.") from error


def _yaml(text: str) -> Any:
    require("yaml", "A YAML configuration", package="pyyaml")
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise _SyntaxError(f"not valid YAML: {' '.join(str(error).split())}.") from error


def _loader() -> Any:
    """A loader that reads `1e-3` as a number, which is a string in YAML 1.1."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )
    return Loader


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _SyntaxError(f"not valid JSON: {error}.") from error


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": _toml,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": _json,
}
