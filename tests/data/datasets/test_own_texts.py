"""A CSV file of texts and labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmeta.data import DataError, load_csv, token_ids
from fastmeta.data.datasets.own_texts import read_column, read_texts

ROWS = [(f'"text, {k} of {name}"', name) for name in "abcdef" for k in range(2)]


def write(path: Path, header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in ROWS)]), encoding="utf-8-sig")
    return path


def test_texts_of_all_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv")
    for split in ("train", "val", "test"):
        dataset = load_csv(path, split, length=16)
        texts = [f"text, {k} of {name}" for name in dataset.class_names for k in range(2)]
        assert dataset.ids.tolist() == token_ids(texts, 4096, 16).tolist()
    assert repr(dataset) == (
        "TextDataset(2 classes, 2 examples each, inputs (16,), vocabulary of 4096)"
    )


def test_other_columns_and_tabs(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("id\tquery\tintent\n1\thello\tgreet\n2\tbye\tleave\n3\thi\tgreet\n")
    assert read_texts(path, "query", "intent") == {"greet": ["hello", "hi"], "leave": ["bye"]}
    assert read_column(path, "query") == ["hello", "bye", "hi"]
    with pytest.raises(DataError, match=r"'text', 'label' in the header; found .*'id', 'query'"):
        read_texts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no header"),
        (b"text,label\nhello\n", "fewer in line 2"),
        (b"text,label\n\xff,a\n", "a CSV file in UTF-8"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(path)
