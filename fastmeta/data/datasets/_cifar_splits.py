"""Which classes of CIFAR-100 belong to which split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastmeta.data._io.errors import DataError, data_error

_SOURCE = (
    "Get it from torchmeta (https://github.com/tristandeleu/pytorch-meta, "
    "torchmeta/datasets/assets), or point splits= at its folder."
)


def read_classes(folder: Path, split: str, names: Sequence[str]) -> list[int]:
    """The ids of a split's classes, in the order of its list.

    Args:
        folder: has the list, ``<split>.json`` (of texts, or of pairs of superclass and class) or,
            if there is none, ``<split>.txt`` (a text a line). A text is a class or a superclass.
        split: its name.
        names: of all classes, as ``"superclass/class"``.

    Raises:
        DataError: if there is no list, it has another form, or it names what is not there or a
            class twice.
    """
    path = folder / f"{split}.json"
    if not path.is_file():
        path = folder / f"{split}.txt"
    ids: list[int] = []
    for entry in _read(path):
        found = [c for c, name in enumerate(names) if entry in (name, *name.split("/"))]
        if not found:
            raise _wrong(path, "classes or superclasses of CIFAR-100", repr(entry))
        ids.extend(found)
    if len(set(ids)) != len(ids) or not ids:
        raise _wrong(path, "distinct classes", f"{len(set(ids))} in {len(ids)} entries")
    return ids


def _read(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
        entries = content.split() if path.suffix == ".txt" else json.loads(content)
        return [entry if isinstance(entry, str) else "/".join(entry) for entry in entries]
    except FileNotFoundError:
        raise _wrong(path.with_suffix(""), "a list .json or .txt", "neither") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _wrong(path, "a list of names", f"{type(error).__name__}: {error}") from error


def _wrong(path: Path, expected: str, found: str) -> DataError:
    return data_error(path, expected=expected, found=found, fix=_SOURCE)
