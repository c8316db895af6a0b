"""Splits of the classes of a user's own data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from fastmeta.data import DataError
from fastmeta.data._own_splits import WHOLE, find_parts, split_own, split_sizes

HERE = Path("data")


def sized(names: Iterable[str], size: int = 9) -> dict[str, int]:
    return dict.fromkeys(names, size)


@pytest.mark.parametrize(
    ("total", "sizes"),
    [
        (6, (2, 2, 2)),
        (10, (4, 3, 3)),
        (15, (5, 5, 5)),
        (20, (10, 5, 5)),
        (25, (15, 5, 5)),
        (100, (60, 20, 20)),
    ],
)
def test_sizes(total: int, sizes: tuple[int, int, int]) -> None:
    assert split_sizes(total) == sizes


def test_classes_are_split_by_seed_alone() -> None:
    names = [f"c{k:02d}" for k in range(20)]
    first = split_own(HERE, {WHOLE: sized(names)})
    assert first == split_own(HERE, {WHOLE: sized(names[::-1])})
    assert sorted(name for split in first.values() for name in split) == names
    assert first != split_own(HERE, {WHOLE: sized(names)}, split_seed=1)


def test_small_classes_are_for_training() -> None:
    counts = {**sized("abcdefgh"), "b": 2, "e": 3}
    for seed in range(5):
        found = split_own(HERE, {WHOLE: counts}, minimum=4, split_seed=seed)
        assert {"b", "e"} <= {*found["train"]}
        assert sorted(name for split in found.values() for name in split) == sorted(counts)


def test_folders_decide_and_a_missing_one_is_drawn_from_training() -> None:
    train, test = [f"a{k}" for k in range(10)], ["x", "y"]
    found = {"train": sized(train), "test": sized(test)}
    assert split_own(HERE, {**found, "val": sized("v")})["val"] == ["v"]
    drawn = split_own(HERE, found)
    assert drawn["test"] == test
    assert len(drawn["val"]) == 3
    assert sorted(drawn["train"] + drawn["val"]) == train


def test_lists_override_all() -> None:
    names = list("abcdef")
    found = split_own(HERE, {WHOLE: sized(names)}, val_classes=["b"], test_classes=["f", "a"])
    assert found == {"train": ["c", "d", "e"], "val": ["b"], "test": ["a", "f"]}
    only = split_own(HERE, {WHOLE: sized(names)}, train_classes=["c"], test_classes=["f"])
    assert only == {"train": ["c"], "val": [], "test": ["f"]}


def test_folders_with_the_same_classes_can_be_merged() -> None:
    found = {"train": sized("abcdef"), "test": sized("abcdef")}
    with pytest.raises(DataError, match=r"6 classes in both train and test: .*merge=true"):
        split_own(HERE, found)
    merged = split_own(HERE, found, merge=True)
    assert [len(merged[split]) for split in ("train", "val", "test")] == [2, 2, 2]


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        ({WHOLE: sized("abc", 4)}, {}, r"at least 6 classes, .*; found 3 of the 3 .*a: 4, b: 4"),
        (
            {WHOLE: sized("abcdefg")},
            {"minimum": 10},
            r"of at least 10 examples, .*found 0 of the 7",
        ),
        ({"val": sized("a"), "test": sized("b")}, {}, "classes for training in train"),
        ({WHOLE: sized("abc")}, {"test_classes": ["z"]}, "the classes z of train_classes"),
        ({WHOLE: sized("abc")}, {"val_classes": ["a"], "test_classes": ["a"]}, "a more than once"),
    ],
)
def test_errors(found: dict, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_own(HERE, found, **options)


def test_files_of_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        find_parts(tmp_path, (".csv",), "a CSV file")
    with pytest.raises(DataError, match="no such file or folder"):
        find_parts(tmp_path / "nowhere.csv", (".csv",), "a CSV file")
    (tmp_path / "mine.csv").touch()
    assert find_parts(tmp_path, (".csv",), "") == {WHOLE: tmp_path / "mine.csv"}
    assert find_parts(tmp_path / "mine.csv", (".csv",), "") == {WHOLE: tmp_path / "mine.csv"}
    (tmp_path / "train.csv").touch()
    (tmp_path / "test.csv").touch()
    assert [*find_parts(tmp_path, (".csv",), "")] == ["train", "test"]
