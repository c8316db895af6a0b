"""What the command line can name: methods, their components, datasets and backbones."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from shutil import get_terminal_size
from typing import Any

from fastmeta._checks import did_you_mean
from fastmeta._options import REQUIRED, Option, describe, options_of, summary_of
from fastmeta.adaptation import ADAPTATIONS
from fastmeta.aggregation import AGGREGATIONS
from fastmeta.cli import summaries
from fastmeta.cli.toml import entries
from fastmeta.data import DATASETS, DatasetSpec, datasets_in
from fastmeta.learners import METHODS, MethodSpec
from fastmeta.metagrad import METAGRADS
from fastmeta.models import BACKBONES, BackboneSpec
from fastmeta.registry import PluginError, Registry, origin
from fastmeta.train import ConfigError
from fastmeta.train.config.presets import defaults_for

# Arguments of components that are set by options of their own, or follow from the tasks.
DATASET_ARGUMENTS = ("root", "split", "tasks", "shots", "queries", "seed", "length", "device")
_FIXED: dict[str, Collection[str]] = {
    "adaptation": ("lr", "steps"),
    "metagrad": (),
    "aggregation": (),
    "dataset": DATASET_ARGUMENTS,
}
_FLAGS = {kind: f"--{kind}-option" for kind in _FIXED} | {"dataset": "--data-option"}
_TITLES = {"metagrad": "meta-gradient", "dataset": "dataset"}


REGISTRIES: dict[str, Registry[Any]] = {
    "method": METHODS,
    "adaptation": ADAPTATIONS,
    "metagrad": METAGRADS,
    "aggregation": AGGREGATIONS,
    "dataset": DATASETS,
    "backbone": BACKBONES,
}
"""The registries by kind."""


def factory_of(kind: str, name: str) -> Callable[..., Any]:
    """What makes a component, dataset or network by name."""
    value = REGISTRIES[kind][name]
    if isinstance(value, BackboneSpec):
        return value.network
    found: Callable[..., Any] | None = value
    if isinstance(value, DatasetSpec):
        found = value.loader or value.generator
    assert found is not None
    return found


def component_options(
    kind: str, name: str, given: Mapping[str, Any] | None = None
) -> dict[str, Option] | None:
    """The options of a component or dataset, `None` if it takes any.

    Args:
        kind: `"adaptation"`, `"metagrad"`, `"aggregation"` or `"dataset"`.
        name: of it.
        given: options that decide which others there are, such as the variant of GSL.
    """
    return options_of(factory_of(kind, name), given, _FIXED[kind])


def method_summaries() -> str:
    """The methods of the library, one per line with an explanation."""
    return _table(summaries.METHODS.items())


def _summary(kind: str, name: str) -> str:
    try:
        if kind == "method":
            parts = METHODS[name]._asdict().items()
            return summaries.METHODS.get(name) or ", ".join(f"{k} {v}" for k, v in parts)
        found = summary_of(factory_of(kind, name))
        return summaries.DATASETS.get(name, found) if kind == "dataset" else found
    except PluginError as error:
        return f"cannot be used: {error}"


def list_methods() -> str:
    """Methods, adaptations, meta-gradients and aggregations, each with an explanation."""
    parts = [
        f"{_TITLES.get(kind, kind)}s (--{kind}):\n{_table(_rows(kind))}"
        for kind in ("method", *MethodSpec._fields)
    ]
    return "\n\n".join([*parts, "'fastmeta info NAME' lists the options of one."])


def list_datasets(data_root: str | None) -> str:
    """Datasets, whether their files are there, and backbones."""
    root, found = _root(data_root), found_datasets(data_root)
    own = {name for name, spec in DATASETS.own.items() if spec.splits is not None}
    missing = {*summaries.DATASETS} - {*found} - own
    rows = ((n, f"{'(not found) ' if n in missing else ''}{text}") for n, text in _rows("dataset"))
    where = f"files in {root}" if root else "set FASTMETA_DATA to the folder of their files"
    return (
        f"datasets (--dataset; {where}):\n{_table(rows)}\n\n"
        f"backbones (--backbone):\n{_table(_rows('backbone'))}\n\n"
        "'fastmeta info NAME' lists the options and training defaults of one."
    )


def found_datasets(data_root: str | None) -> list[str]:
    """The datasets that need no files, and those with files in a folder."""
    root = _root(data_root)
    return ["glyphs", "digits", "image-regression", "sine", *(datasets_in(root) if root else [])]


def _root(data_root: str | None) -> str:
    return data_root or os.environ.get("FASTMETA_DATA", "")


def list_plugins() -> list[str]:
    """A line for each plug-in."""
    return [
        f"{registry.kind} {name}, of {origin(entry)}"
        for registry in REGISTRIES.values()
        for name, entry in registry.plugins().items()
    ]


def describe_name(name: str) -> str:
    """The options of everything with this name.

    Raises:
        ConfigError: if there is nothing.
    """
    kinds = ("method", *_FIXED, "backbone")
    parts = [(kind, name) for kind in kinds if name in REGISTRIES[kind]]
    if not parts:
        known = [known for kind in kinds for known in REGISTRIES[kind]]
        raise ConfigError(
            f"unknown name {name!r}.{did_you_mean(name, known)} See 'fastmeta methods' and "
            "'fastmeta datasets'."
        )
    if parts[0][0] == "method":
        parts += [part for part in METHODS[name]._asdict().items() if part not in parts]
    return "\n\n".join("\n".join(_section(*part)) for part in parts)


def _section(kind: str, name: str) -> Iterator[str]:
    yield from _wrapped(f"{_TITLES.get(kind, kind)} {name}: {_summary(kind, name)}", 0)
    if kind == "method":
        for part, value in METHODS[name]._asdict().items():
            yield f"  {part} = {value!r}"
        base = defaults_for("digits", "maml")
        changed = {k: v for k, v in defaults_for("digits", name).items() if base.get(k) != v}
        yield from _defaults({k: v for k, v in changed.items() if k not in MethodSpec._fields})
        return
    factory = factory_of(kind, name)
    if kind == "backbone":
        options = options_of(factory) or {}
        yield from _options({k: o for k, o in options.items() if o.default is not REQUIRED}, "")
        return
    yield from _options(component_options(kind, name), f" ({_FLAGS[kind]} KEY=VALUE)")
    if kind == "dataset":
        yield from _defaults(defaults_for(name, "maml"))


def _options(options: Mapping[str, Option] | None, how: str) -> Iterator[str]:
    if not options:
        yield "  any options" + how if options is None else "  no options"
        return
    yield f"  options{how}:"
    for option in options.values():
        default = "required" if option.default is REQUIRED else f"default: {option.default!r}"
        yield f"    {option.name}  ({describe(option.hint)}; {default})"
        yield from _wrapped(option.text, 8)


def _defaults(values: Mapping[str, Any]) -> Iterator[str]:
    if values:
        yield "  training defaults:"
        yield from (f"    {line}" for line in entries(values))


def _rows(kind: str) -> Iterator[tuple[str, str]]:
    return ((name, _summary(kind, name)) for name in REGISTRIES[kind])


def _table(rows: Iterable[tuple[str, str]]) -> str:
    found = [*rows]
    column = 4 + max(len(name) for name, _ in found)
    lines = []
    for name, text in found:
        first, *rest = _wrapped(text, column) or [" " * column]
        lines += [f"  {name}".ljust(column) + first[column:], *rest]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    width = max(get_terminal_size().columns, indent + 40)
    space = " " * indent
    return textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space)
