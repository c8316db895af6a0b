"""Reader of the original files of CLINC150 and Banking77."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from fastmeta.data._io.errors import DataError, data_error

CLINC150_SOURCE = "Download it again from https://github.com/clinc/oos-eval (data/)."
BANKING77_SOURCE = (
    "Download it again from https://github.com/PolyAI-LDN/task-specific-datasets (banking_data/)."
)

Texts = dict[str, list[str]]  # by intent

_CLINC150_TEXTS = {"train": 15_000, "val": 3_000, "test": 4_500}
_CLINC150_DOMAINS, _CLINC150_INTENTS = 10, 15  # intents of each domain
_BANKING77_TEXTS = {"train": 10_003, "test": 3_080}
_BANKING77_INTENTS = 77
_HEADER = ["text", "category"]


def read_clinc150(folder: Path) -> Texts:
    """All in-scope texts, by `"domain/intent"`.

    Raises:
        DataError: if `data_full.json` or `domains.json` is missing or incomplete.
    """
    names = _read_domains(folder / "domains.json")
    path = folder / "data_full.json"
    content = _read(path, json.load, CLINC150_SOURCE)
    texts: Texts = defaultdict(list)
    for part, count in _CLINC150_TEXTS.items():
        try:
            rows = [(text, names[intent]) for text, intent in content[part]]
            complete = len(rows) == count and all(isinstance(text, str) for text, _ in rows)
        except (KeyError, TypeError, ValueError) as error:
            raise _incomplete(path, part, count, f"{type(error).__name__}: {error}") from error
        if not complete:
            raise _incomplete(path, part, count, f"{len(rows)}")
        for text, name in rows:
            texts[name].append(text)
    return texts


def read_banking77(folder: Path) -> Texts:
    """All texts of both files, by intent.

    Raises:
        DataError: if `train.csv` or `test.csv` is missing or incomplete.
    """
    texts: Texts = defaultdict(list)
    for part, count in _BANKING77_TEXTS.items():
        path = folder / f"{part}.csv"
        rows = _read(path, lambda file: list(csv.reader(file, strict=True)), BANKING77_SOURCE)
        invalid = [row for row in rows if len(row) != len(_HEADER)]
        if rows[:1] != [_HEADER] or invalid or len(rows) != 1 + count:
            found = (
                f"the row {invalid[0]!s:.80}" if invalid else f"{len(rows)} rows, {rows[:1]} first"
            )
            raise data_error(
                path,
                expected=f"the header {','.join(_HEADER)} and {count} rows of two columns",
                found=found,
                fix=BANKING77_SOURCE,
            )
        for text, intent in rows[1:]:
            texts[intent].append(text)
    if len(texts) != _BANKING77_INTENTS:
        raise data_error(
            folder,
            expected=f"{_BANKING77_INTENTS} categories in both files",
            found=f"{len(texts)}",
            fix=BANKING77_SOURCE,
        )
    return texts


def _read_domains(path: Path) -> dict[str, str]:
    """The name `"domain/intent"` of each intent."""
    content = _read(path, json.load, CLINC150_SOURCE)
    try:
        sizes = [len(intents) for intents in content.values()]
        names = {i: f"{domain}/{i}" for domain, intents in content.items() for i in intents}
    except (AttributeError, TypeError):
        sizes, names = [], {}
    total = _CLINC150_DOMAINS * _CLINC150_INTENTS
    if sizes != [_CLINC150_INTENTS] * _CLINC150_DOMAINS or len(names) != total:
        raise data_error(
            path,
            expected=f"{_CLINC150_DOMAINS} domains of {_CLINC150_INTENTS} intents, all distinct",
            found=f"{len(sizes)} with {len(names)}",
            fix=CLINC150_SOURCE,
        )
    return names


def _read(path: Path, parse: Callable[[TextIO], Any], fix: str) -> Any:
    try:
        # The quoted texts of a CSV file may contain line breaks.
        with path.open(encoding="utf-8", newline="") as file:
            return parse(file)
    except FileNotFoundError:
        raise data_error(path, expected="a file", found="no such file", fix=fix) from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise data_error(
            path, expected="a complete file", found=f"a corrupt one ({error})", fix=fix
        ) from error


def _incomplete(path: Path, part: str, count: int, found: str) -> DataError:
    return data_error(
        path,
        expected=f"in {part!r} {count} pairs [text, intent], of the intents of domains.json",
        found=found,
        fix=CLINC150_SOURCE,
    )
