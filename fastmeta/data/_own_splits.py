"""Splits of the classes of a user's own data, by folders or by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

from fastmeta.data._io.errors import data_error
from fastmeta.data.splits import SPLITS, draw_split

Splits = dict[str, list[str]]
"""The names of the classes of each split."""
Names = Sequence[str] | None

WHOLE = ""  # key of data that is not divided into train, val and test
_MINIMUM = 6  # classes: two per split
_FIVE = 5  # classes of validation and test that suffice for 5-way tasks


def split_own(
    where: Path,
    found: Mapping[str, Mapping[str, int]],
    *,
    minimum: int = 1,
    split_seed: int = 0,
    merge: bool = False,
    train_classes: Names = None,
    val_classes: Names = None,
    test_classes: Names = None,
    **_: object,
) -> Splits:
    """The classes of each split.

    Args:
        where: the files, for error messages.
        found: numbers of examples by class, by `"train"`, `"val"` and `"test"`, or of all classes
            by `WHOLE`.
        minimum: examples that a class needs to be drawn for validation or test.
        split_seed: seed of the split of classes that are not divided yet.
        merge: whether to pool `"train"`, `"val"` and `"test"` and split their classes by seed.
        train_classes: names of the classes of a split; lists override all else.
        val_classes: likewise.
        test_classes: likewise.
        **_: other options of a loader.

    Raises:
        DataError: if there are too few classes, a class is in two splits, or a given one is
            missing.
    """
    counts: dict[str, int] = {}
    for part in found.values():
        for name, count in part.items():
            counts[name] = counts.get(name, 0) + count
    everything = sorted(counts)
    lists = (train_classes, val_classes, test_classes)
    chosen = {split: names for split, names in zip(SPLITS, lists, strict=True) if names is not None}
    if chosen:
        return _given(where, everything, chosen)
    if merge or WHOLE in found:
        return _drawn(where, counts, minimum, split_seed, SPLITS)
    _check_folders(where, found)
    splits = {split: sorted(found.get(split, ())) for split in SPLITS}
    missing = [split for split in SPLITS[1:] if not splits[split]]
    if missing:
        rest = _drawn(where, found["train"], minimum, split_seed, ("train", *missing))
        splits |= {split: rest[split] for split in ("train", *missing)}
    return splits


def sizes_of(found: Mapping[str, Mapping[str, Sized]]) -> dict[str, dict[str, int]]:
    """The numbers of examples of `split_own`, from the examples of each class."""
    return {part: {name: len(v) for name, v in of.items()} for part, of in found.items()}


def split_sizes(total: int, parts: Sequence[str] = SPLITS) -> tuple[int, int, int]:
    """The number of classes of each split.

    Held out are a fifth for each of val and test, or five if that is more and at most a third.

    Args:
        total: number of classes.
        parts: the splits that are needed; the others have no class.
    """
    held_out = max(round(total / 5), min(_FIVE, total // 3))
    val, test = (held_out if split in parts else 0 for split in SPLITS[1:])
    return total - val - test, val, test


def _drawn(
    where: Path, counts: Mapping[str, int], minimum: int, seed: int, parts: Sequence[str]
) -> Splits:
    large = sorted(name for name, count in counts.items() if count >= minimum)
    if len(large) < _MINIMUM:
        of_size = "" if minimum == 1 else f" of at least {minimum} examples"
        listed = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
        raise data_error(
            where,
            expected=f"at least {_MINIMUM} classes{of_size}, two for each of train, val and test",
            found=f"{len(large)} of the {len(counts)} classes ({listed})",
            fix="Add classes or examples, or ask for fewer examples (--shots, --eval-queries).",
        )
    sizes = split_sizes(len(large), parts)
    splits = {split: [large[c] for c in draw_split(split, sizes, seed)] for split in SPLITS}
    small = counts.keys() - {*large}
    splits["train"] = sorted([*splits["train"], *small])
    return splits


def _given(where: Path, names: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> Splits:
    listed = [name for split in chosen.values() for name in split]
    unknown = sorted({*listed} - {*names})
    if unknown:
        raise data_error(
            where,
            expected=f"the classes {', '.join(unknown)} of train_classes, val_classes and "
            "test_classes",
            found="no such classes",
            fix="Restore them, or correct the lists.",
        )
    if len({*listed}) < len(listed):
        twice = sorted({name for name in listed if listed.count(name) > 1})
        raise data_error(
            where,
            expected="each class in one of train_classes, val_classes and test_classes",
            found=f"{', '.join(twice)} more than once",
            fix="Test classes must not be seen in training.",
        )
    splits = {split: sorted(chosen.get(split, ())) for split in SPLITS}
    if "train" not in chosen:
        splits["train"] = [name for name in names if name not in listed]
    return splits


def _check_folders(where: Path, found: Mapping[str, Mapping[str, int]]) -> None:
    if not found.get("train"):
        raise data_error(
            where,
            expected="classes for training in train",
            found=f"classes in {', '.join(found) or 'nothing'} only",
            fix="Add train, or put all classes beside each other to have them split by seed.",
        )
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted({*found.get(first, ())} & {*found.get(second, ())})
        if both:
            raise data_error(
                where,
                expected="different classes in train, val and test",
                found=f"{len(both)} classes in both {first} and {second}: {', '.join(both)}",
                fix="Few-shot learners are tested on classes that they were not trained on. "
                "To pool these folders and split the classes by seed, pass merge=True "
                "(--data-option merge=true).",
            )


def find_parts(root: Path, suffixes: Sequence[str], what: str) -> dict[str, Path]:
    """The files `train`, `val` and `test` of a folder by split, or a single file by `WHOLE`.

    Raises:
        DataError: if there is none, or several of other names.
    """
    if root.is_file() and root.suffix.lower() in suffixes:
        return {WHOLE: root}
    files = sorted(root.iterdir()) if root.is_dir() else []
    files = [file for file in files if file.suffix.lower() in suffixes]
    parts = {file.stem: file for file in files if file.stem in SPLITS}
    if "train" in parts:
        return {split: parts[split] for split in SPLITS if split in parts}
    if len(files) == 1:
        return {WHOLE: files[0]}
    names = ", ".join(file.name for file in files) or ("a file" if root.is_file() else "none")
    raise data_error(
        root,
        expected=f"{what} ({', '.join(suffixes)}), or a folder with one or with train, val and "
        "test",
        found=names if root.exists() else "no such file or folder",
        fix="Pass the file itself.",
    )
