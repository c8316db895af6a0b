from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastmeta.data import (
    DataError,
    EpisodeSampler,
    TextDataset,
    load_banking77,
    load_clinc150,
    token_ids,
)
from tests.helpers.synthetic_files import (
    BANKING77,
    CLINC150,
    intents,
    write_banking77,
    write_clinc150,
)

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_clinc150(root)
    write_banking77(root)
    return root


@pytest.mark.parametrize(
    ("load", "sizes", "total"),
    [(load_clinc150, [50, 50, 50], 150), (load_banking77, [25, 25, 27], 77)],
)
def test_splits_are_of_intents(
    load: Callable[..., TextDataset], sizes: list[int], total: int, root: Path
) -> None:
    parts = [load(root, split) for split in SPLITS]
    assert [part.num_classes for part in parts] == sizes
    names = [name for part in parts for name in part.class_names]
    assert len({*names}) == total
    other = load(root, "train", split_seed=1)
    assert {*other.class_names} != {*parts[0].class_names}
    assert len(other.class_names) == sizes[0]


def test_all_texts_of_an_intent_are_taken(root: Path) -> None:
    clinc = load_clinc150(root, "val", length=40)
    assert {len(rows) for rows in clinc.class_indices} == {sum(CLINC150.values())}
    domain, intent = clinc.class_names[7].split("/")
    assert intent in intents()[domain]
    texts = [f"{intent} as {part} says {k}" for part, n in CLINC150.items() for k in range(n)]
    expected = torch.from_numpy(token_ids(texts, 4096, 40))
    assert torch.equal(clinc.ids[clinc.class_indices[7]], expected)
    parts = [load_banking77(root, split) for split in SPLITS]
    (banking,) = (part for part in parts if "intent03" in part.class_names)
    rows = banking.class_indices[banking.class_names.index("intent03")]
    texts = [f'Row {k},\n "{part}"' for part, n in BANKING77.items() for k in range(3, n, 77)]
    assert torch.equal(banking.ids[rows], torch.from_numpy(token_ids(texts, 4096, 96)))


def test_domains_are_kept_apart(root: Path) -> None:
    parts = [load_clinc150(root, split, split_by="domain") for split in SPLITS]
    domains = [{name.partition("/")[0] for name in part.class_names} for part in parts]
    assert [len(part) for part in domains] == [4, 1, 5]
    assert len(set.union(*domains)) == 10
    assert [part.num_classes for part in parts] == [60, 15, 75]


def test_vocabulary_and_length_reach_the_tokens(root: Path) -> None:
    dataset = load_banking77(root, "test", vocabulary=50, length=7)
    assert (dataset.vocabulary, dataset.ids.shape[1]) == (50, 7)
    assert dataset.ids.max() < 50
    batch = EpisodeSampler(dataset, 5, 2, 3, tasks=4)[0]
    assert batch.support_x.shape == (4, 10, 7)
    assert batch.query_x.dtype == torch.int64


def test_arguments_are_checked(root: Path) -> None:
    with pytest.raises(ValueError, match="split_by must be one of intent, domain; got 'day'"):
        load_clinc150(root, "train", split_by="day")
    with pytest.raises(ValueError, match="split must be one of"):
        load_banking77(root, "valid")
    with pytest.raises(ValueError, match="vocabulary must be at least 2"):
        load_clinc150(root, "train", vocabulary=1)


def change(path: Path, edit: Callable[[object], object]) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: {**c, "val": c["val"][:-1]}, r"in 'val' 3000 pairs .*found 2999"),
        (lambda c: {"train": c["train"]}, "KeyError: 'val'"),
        (lambda c: c["train"], "in 'train' 15000 pairs"),
        (lambda c: {**c, "train": [*c["train"][1:], ["a"]]}, "ValueError"),
        (lambda c: {**c, "train": [*c["train"][1:], ["a", "oos"]]}, "KeyError: 'oos'"),
        (lambda c: {**c, "train": [*c["train"][1:], ["a", []]]}, "TypeError"),
        (lambda c: {**c, "train": [*c["train"][1:], [5, c["train"][0][1]]]}, "found 15000"),
    ],
)
def test_malformed_texts_are_refused(
    edit: Callable[[object], object], message: str, tmp_path: Path
) -> None:
    path = write_clinc150(tmp_path) / "data_full.json"
    change(path, edit)
    with pytest.raises(DataError, match=message) as caught:
        load_clinc150(tmp_path, "train")
    assert str(caught.value).startswith(f"{path}: expected")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: {k: v for k, v in d.items() if k != "domain3"},
        lambda d: {**d, "domain3": d["domain3"][1:]},
        lambda d: {**d, "domain3": d["domain4"]},
        lambda d: list(d),
        lambda d: {**d, "domain3": 7},
        lambda d: {**d, "domain3": [[]] * 15},
    ],
)
def test_malformed_domains_are_refused(edit: Callable[[object], object], tmp_path: Path) -> None:
    path = write_clinc150(tmp_path) / "domains.json"
    change(path, edit)
    with pytest.raises(DataError, match=r"10 domains of 15 intents, all distinct; found"):
        load_clinc150(tmp_path, "train")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace("text,category", "text,label", 1), "the header text,category"),
        (lambda t: t + "one\n", r"rows of two columns; found the row \['one'\]"),
        (lambda t: t + "one,two,three\n", "found the row"),
        (lambda t: t + "one,intent00\n", "10003 rows"),
        (lambda t: t[: len(t) // 2], "10003 rows|a corrupt one"),
        (lambda t: t[:-1] + "s\n", "77 categories in both files; found 78"),
        (lambda t: t + '"never closed', "a corrupt one"),
        (lambda t: "", "10003 rows"),
    ],
)
def test_malformed_rows_are_refused(
    edit: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    path = write_banking77(tmp_path) / "train.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(DataError, match=message):
        load_banking77(tmp_path, "train")


@pytest.mark.parametrize("name", ["data_full.json", "domains.json", "train.csv", "test.csv"])
def test_broken_and_missing_files_are_named(name: str, tmp_path: Path) -> None:
    json_file = name.endswith("json")
    folder = (write_clinc150 if json_file else write_banking77)(tmp_path)
    load = load_clinc150 if json_file else load_banking77
    (folder / name).write_bytes(b"\xff\xfe" if name != "domains.json" else b"[" * 100_000)
    with pytest.raises(DataError, match=rf"{name}: expected a complete file; found a corrupt one"):
        load(tmp_path, "train")
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        load(tmp_path, "train")
