"""Checks and shows a configuration without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from fastmeta._options import check_options
from fastmeta.cli.arguments import grouped
from fastmeta.cli.catalog import DATASET_ARGUMENTS, REGISTRIES, factory_of
from fastmeta.cli.toml import entries
from fastmeta.learners import MethodSpec
from fastmeta.learners.methods import make_component
from fastmeta.train import ConfigError, TrainConfig


def check_components(config: TrainConfig) -> None:
    """Refuses options that a component or the dataset does not have, before data is loaded.

    Raises:
        ConfigError: naming the component, the option and what was expected.
    """
    try:
        check_options(
            f"dataset {config.dataset!r}",
            factory_of("dataset", config.dataset),
            {**config.data_options, **config.train_data_options},
            DATASET_ARGUMENTS,
        )
        for kind in MethodSpec._fields:
            loop = {"lr": config.inner_lr, "steps": config.inner_steps}
            options = getattr(config, f"{kind}_options")
            arguments = loop if kind == "adaptation" else {}
            make_component(REGISTRIES[kind], getattr(config, kind), options, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def as_toml(config: TrainConfig) -> str:
    """The options as a TOML file, in the groups of `--help`; `--config` reads it."""
    return "\n".join(_lines(config))


def _lines(config: TrainConfig) -> Iterator[str]:
    values = config.to_dict()
    for number, (title, members) in enumerate(grouped(fields(config))):
        if number:
            yield ""
        yield f"# {title}"
        yield from entries({item.name: values[item.name] for item in members})
