"""Rows and cells of a table, read from its TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastmeta.train import ConfigError, TrainConfig, configure
from fastmeta.train.config.files import read_table
from fastmeta.train.config.schema import check_names

# Options about where a run is stored and how it is logged do not change its result.
PLACE = {"out", "data_root", "device", "threads", "log", "log_every", "checkpoint_every", "keep"}
_QUIET = {"plots": False, "untrained": False, "checkpoint_every": 500}


@dataclass(frozen=True)
class Row:
    """A method in a table.

    Attributes:
        name: key in the TOML file and the CSV.
        label: name on the page.
        options: options of `fastmeta.train.TrainConfig`, including those of the table.
        of: row whose trained runs this one evaluates with other options, instead of training.
        after: row whose finished runs this one continues, with other options and more steps.
        seeds: seeds of initial weights and training tasks.
        published: published number with its source, for the page.
    """

    name: str
    label: str
    options: Mapping[str, Any]
    of: str | None
    after: str | None
    seeds: tuple[int, ...]
    published: str


class Cell(NamedTuple):
    """One run: a row with a seed."""

    row: Row
    seed: int


@dataclass(frozen=True)
class Table:
    """A table: many methods on the same tasks with the same budget.

    Attributes:
        name: stem of the TOML file.
        title: title of the page.
        notes: Markdown below the table.
        reference: row to which times are relative.
        rows: rows by name, in the order of the page.
    """

    name: str
    title: str
    notes: str
    reference: str
    rows: Mapping[str, Row]

    def cells(self, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
        """The cells of some rows and seeds, or all; the first seeds of all rows come first."""
        chosen = [
            Cell(row, seed)
            for row in self.rows.values()
            for seed in row.seeds
            if (not rows or row.name in rows) and (not seeds or seed in seeds)
        ]
        return sorted(chosen, key=lambda cell: cell.row.seeds.index(cell.seed))


def read_plan(path: Path, given: Mapping[str, Any]) -> Table:
    """Reads the TOML file of a table; ``given`` options apply to all its runs.

    ``use`` lists rows of ``methods.toml`` in the same folder, to which ``[rows]`` adds options.

    Raises:
        ConfigError: if the file is invalid, or a row has an unknown option or refers to a row that
            does not exist.
    """
    content = read_table(path)
    base = {**_QUIET, **content.pop("base", {}), **given}
    seeds = tuple(content.pop("seeds", [0]))
    own = content.pop("rows", {})
    used = content.pop("use", [])
    methods = read_table(path.with_name("methods.toml")) if used else {}
    for name in own:
        if name in methods and name not in used:
            raise ConfigError(f"{path}: row {name} is one of methods.toml; add it to use.")
    rows = {
        name: _row(name, {**methods.get(name, {}), **own.get(name, {})}, base, seeds, path)
        for name in dict.fromkeys([*used, *own])
    }
    table = Table(path.stem, rows=rows, **{"notes": "", **content})
    others = [name for row in rows.values() for name in (row.of, row.after) if name]
    for name in (table.reference, *others):
        if name not in rows:
            raise ConfigError(f"{path}: expected a row of the table, got {name!r}.")
    return table


def _row(
    name: str, entry: dict[str, Any], base: Mapping[str, Any], seeds: tuple[int, ...], path: Path
) -> Row:
    own = {
        "label": entry.pop("label", name),
        "of": entry.pop("of", None),
        "after": entry.pop("after", None),
        "seeds": tuple(entry.pop("seeds", seeds)),
        "published": entry.pop("published", ""),
    }
    check_names(entry, f"{path}, row {name}")
    return Row(name, options=entry if own["of"] else {**base, **entry}, **own)


def config_of(cell: Cell, folder: Path) -> TrainConfig:
    """The configuration of the run of a trained cell.

    A data option with value ``"seed"`` gets the seed of the cell: with few classes, each seed has
    its own split.
    """
    given = cell.row.options.get("data_options", {})
    data = {name: cell.seed if value == "seed" else value for name, value in given.items()}
    own = {"seed": cell.seed, "out": str(folder), "data_options": data}
    return configure(cell.row.options, own)
