"""A user's own texts: a CSV file of texts and labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastmeta.data._io.errors import data_error
from fastmeta.data._io.tokens import token_ids
from fastmeta.data._own_splits import Splits, find_parts, sizes_of, split_own
from fastmeta.data.id_datasets import TextDataset
from fastmeta.data.splits import check_split

VOCABULARY = 2**12
LENGTH = 96
SUFFIXES = (".csv", ".tsv")
_COLUMNS = ("text", "label")

Texts = dict[str, list[str]]  # by class


def load_csv(
    root: str | Path,
    split: str,
    *,
    text_column: str = "text",
    label_column: str = "label",
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
    split_seed: int = 0,
    merge: bool = False,
    train_classes: Sequence[str] | None = None,
    val_classes: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
) -> TextDataset:
    """Loads texts and their labels from a CSV file with a header.

    Classes are split as by [`fastmeta.data.load_folder`][]; `train`, `val` and `test` are files
    such as `train.csv`.

    Args:
        root: the file, `.csv` or `.tsv` (separated by tabs), or a folder of one file or of
            `train.csv`, `val.csv` and `test.csv`.
        split: `"train"`, `"val"` or `"test"`.
        text_column: header of the column of texts.
        label_column: header of the column of labels, names of classes.
        vocabulary: number of token ids, see [`fastmeta.data.token_ids`][].
        length: token ids per text, see [`fastmeta.data.token_ids`][].
        split_seed: see [`fastmeta.data.load_folder`][], as all that follow.
        merge: whether to pool the files and split the classes by seed.
        train_classes: names of the training classes, instead of all that are not held out.
        val_classes: names of the validation classes, instead of a split by seed.
        test_classes: names of the test classes, instead of a split by seed.

    Returns:
        Texts `(n, length)`.

    Raises:
        DataError: if the file is missing or not valid, or there are too few classes.
        ValueError: if an argument is out of range.
    """
    check_split(split)
    where = Path(root).expanduser()
    found = _read(where, text_column, label_column)
    splits = split_own(
        where,
        sizes_of(found),
        split_seed=split_seed,
        merge=merge,
        train_classes=train_classes,
        val_classes=val_classes,
        test_classes=test_classes,
    )
    texts = [[t for part in found.values() for t in part.get(name, ())] for name in splits[split]]
    ids = token_ids([text for of_class in texts for text in of_class], vocabulary, length)
    counts = torch.tensor([len(of_class) for of_class in texts])
    labels = torch.arange(len(texts)).repeat_interleave(counts)
    return TextDataset(torch.from_numpy(ids), labels, splits[split], vocabulary)


def csv_splits(root: Path, minimum: int, options: Mapping[str, Any]) -> Splits:
    """The names of the classes of each split, see [`fastmeta.data.class_splits`][]."""
    columns = [options.get(f"{name}_column", name) for name in _COLUMNS]
    return split_own(root, sizes_of(_read(root, *columns)), minimum=minimum, **options)


def read_texts(path: Path, text_column: str = "text", label_column: str = "label") -> Texts:
    """The texts of one file by label, sorted by label.

    Raises:
        DataError: if it is missing, or lacks the columns.
    """
    texts: Texts = {}
    for text, label in _rows(path, (text_column, label_column)):
        texts.setdefault(label, []).append(text)
    return dict(sorted(texts.items()))


def read_column(path: Path, text_column: str = "text") -> list[str]:
    """The texts of one file, which needs no labels; raises as `read_texts`."""
    return [text for (text,) in _rows(path, (text_column,))]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """The values of some columns, row by row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            rows = csv.DictReader(file, delimiter=delimiter)
            header = rows.fieldnames or []
            if not {*columns} <= {*header}:
                raise data_error(
                    path,
                    expected=f"the columns {', '.join(map(repr, columns))} in the header",
                    found=f"the columns {', '.join(map(repr, header))}" if header else "no header",
                    fix="Name them: --data-option text_column=... and "
                    "--data-option label_column=...",
                )
            for row in rows:
                values = [row[column] for column in columns]
                if None in values:
                    raise data_error(
                        path,
                        expected=f"{len(header)} columns",
                        found=f"fewer in line {rows.line_num}",
                        fix="Quote texts that contain separators or line breaks.",
                    )
                yield values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise data_error(
            path, expected="a CSV file in UTF-8", found=str(error), fix="Check the file."
        ) from error


def _read(root: Path, text_column: str, label_column: str) -> dict[str, Texts]:
    files = find_parts(root, SUFFIXES, "a CSV file of texts and labels")
    return {part: read_texts(file, text_column, label_column) for part, file in files.items()}
