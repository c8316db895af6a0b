"""What a table consists of, read from its TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastmeta.train import ConfigError, TrainConfig, configure
from fastmeta.train.config.files import read_table
from fastmeta.train.config.schema import check_names

# Where a run lies and how it is logged does not change what it measures.
PLACE = {"out", "data_root", "device", "threads", "log", "log_every", "checkpoint_every", "keep"}
_QUIET = {"plots": False, "untrained": False, "checkpoint_every": 500}


@dataclass(frozen=True)
class Row:
    """A method in a table.

    Attributes:
        name: its key in the file and the CSV.
        label: what the page calls it.
        options: of :class:`fastmeta.train.TrainConfig`, beside those of the whole table.
        of: the row whose trained runs this one tests with other options, instead of training.
        seeds: of initial weights and training tasks.
        published: a published number with its source, for the page.
    """

    name: str
    label: str
    options: Mapping[str, Any]
    of: str | None
    seeds: tuple[int, ...]
    published: str


class Cell(NamedTuple):
    """One run: a row with a seed."""

    row: Row
    seed: int


@dataclass(frozen=True)
class Table:
    """A table: one set of tasks and one budget, many methods.

    Attributes:
        name: of the file.
        title: of the page.
        notes: Markdown below the table.
        reference: the row whose time and memory are 1.
        rows: in the order of the page.
    """

    name: str
    title: str
    notes: str
    reference: str
    rows: Mapping[str, Row]

    def cells(self, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
        """The cells of some rows and seeds, or of all; the first seeds of all rows come first."""
        chosen = [
            Cell(row, seed)
            for row in self.rows.values()
            for seed in row.seeds
            if (not rows or row.name in rows) and (not seeds or seed in seeds)
        ]
        return sorted(chosen, key=lambda cell: cell.row.seeds.index(cell.seed))


def read_plan(path: Path, given: Mapping[str, Any]) -> Table:
    """Reads a table's file; ``given`` options are for all its runs.

    ``use`` in it lists rows of ``methods.toml`` beside it, to which its own ``[rows]`` add options.

    Raises:
        ConfigError: if it is broken, or a row has an unknown option or refers to none.
    """
    content = read_table(path)
    base = {**_QUIET, **content.pop("base", {}), **given}
    seeds = tuple(content.pop("seeds", [0]))
    own = content.pop("rows", {})
    used = content.pop("use", [])
    methods = read_table(path.with_name("methods.toml")) if used else {}
    for name in own:
        if name in methods and name not in used:
            raise ConfigError(f"{path}: row {name} is one of methods.toml; name it in use, too.")
    rows = {
        name: _row(name, {**methods.get(name, {}), **own.get(name, {})}, base, seeds, path)
        for name in dict.fromkeys([*used, *own])
    }
    table = Table(path.stem, rows=rows, **{"notes": "", **content})
    for name in (table.reference, *(row.of for row in rows.values() if row.of)):
        if name not in rows:
            raise ConfigError(f"{path}: expected a row of the table, got {name!r}.")
    return table


def _row(
    name: str, entry: dict[str, Any], base: Mapping[str, Any], seeds: tuple[int, ...], path: Path
) -> Row:
    own = {
        "label": entry.pop("label", name),
        "of": entry.pop("of", None),
        "seeds": tuple(entry.pop("seeds", seeds)),
        "published": entry.pop("published", ""),
    }
    check_names(entry, f"{path}, row {name}")
    return Row(name, options=entry if own["of"] else {**base, **entry}, **own)


def config_of(cell: Cell, folder: Path) -> TrainConfig:
    """The configuration of the run of a cell that trains.

    A data option that says ``"seed"`` is the cell's: few classes are split anew for each seed.
    """
    given = cell.row.options.get("data_options", {})
    data = {name: cell.seed if value == "seed" else value for name, value in given.items()}
    own = {"seed": cell.seed, "out": str(folder), "data_options": data}
    return configure(cell.row.options, own)
