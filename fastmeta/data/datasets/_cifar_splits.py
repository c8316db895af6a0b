"""Class splits of CIFAR-100."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastmeta.data._io.errors import DataError, data_error

_SOURCE = (
    "Download it from torchmeta (https://github.com/tristandeleu/pytorch-meta, "
    "torchmeta/datasets/assets), or point splits= at its folder."
)


def read_classes(folder: Path, split: str, names: Sequence[str]) -> list[int]:
    """The class ids of a split, in the order of its list.

    Args:
        folder: the folder of the list, `<split>.json` (of names, or of pairs of superclass and
            class) or, if there is none, `<split>.txt` (one name per line). A name is that of a
            class or of a superclass.
        split: name of the split.
        names: names of all classes, as `"superclass/class"`.

    Raises:
        DataError: if there is no list, it has another format, or contains an unknown name or a
            class twice.
    """
    path = folder / f"{split}.json"
    if not path.is_file():
        path = folder / f"{split}.txt"
    ids: list[int] = []
    for entry in _read(path):
        found = [c for c, name in enumerate(names) if entry in (name, *name.split("/"))]
        if not found:
            raise _invalid(path, "classes or superclasses of CIFAR-100", repr(entry))
        ids.extend(found)
    if len(set(ids)) != len(ids) or not ids:
        raise _invalid(path, "distinct classes", f"{len(set(ids))} in {len(ids)} entries")
    return ids


def _read(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
        entries = content.split() if path.suffix == ".txt" else json.loads(content)
        return [entry if isinstance(entry, str) else "/".join(entry) for entry in entries]
    except FileNotFoundError:
        raise _invalid(path.with_suffix(""), "a list .json or .txt", "neither") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _invalid(path, "a list of names", f"{type(error).__name__}: {error}") from error


def _invalid(path: Path, expected: str, found: str) -> DataError:
    return data_error(path, expected=expected, found=found, fix=_SOURCE)
