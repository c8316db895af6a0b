from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmeta.data import DataError, load_cifar_fs, load_fc100
from tests.helpers import python2_pickles

TINY = {"complete": False}
CLASSES = [f"class{c:02d}" for c in range(100)]
SUPERCLASSES = [f"super{s:02d}" for s in range(20)]


def above(label: int) -> int:
    """The superclass of a class; the two orders differ."""
    return 7 * label % 20


def part(each: int, first: int) -> dict[str, Any]:
    """``each`` images per class in random order: red encodes the class, green the number."""
    labels = np.repeat(np.arange(100), each)
    order = np.random.permutation(len(labels))
    data = np.zeros((len(labels), 3, 1024), dtype=np.uint8)
    data[:, 0] = labels[:, None]
    data[:, 1] = first + np.tile(np.arange(each), 100)[:, None]
    data[:, 2] = np.arange(1024) // 32  # the row of the pixel
    fine = labels[order].tolist()
    return {
        "filenames": [f"{i}.png" for i in range(len(labels))],
        "batch_label": "made up",
        "fine_labels": fine,
        "coarse_labels": [above(label) for label in fine],
        "data": data.reshape(-1, 3072)[order],
    }


Write = Callable[..., Path]


@pytest.fixture
def cifar(tmp_path: Path) -> Write:
    """Writes a CIFAR-100 of 3 + 1 images per class, with changes to its files, and the lists."""
    files = {
        "train": part(3, first=0),
        "test": part(1, first=3),
        "meta": {"fine_label_names": CLASSES, "coarse_label_names": SUPERCLASSES},
    }

    def write(
        dumps: Callable[[Any], bytes] = python2_pickles.dumps, **changes: dict[str, Any]
    ) -> Path:
        folder = tmp_path / "cifar-100-python"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(dumps({**content, **changes.get(name, {})}))
        return tmp_path

    lists = {
        "cifar-fs/train": [[SUPERCLASSES[above(c)], CLASSES[c]] for c in (9, 2, 55)],
        "cifar-fs/val": [CLASSES[4], CLASSES[90]],
        "fc100/train": [SUPERCLASSES[7], SUPERCLASSES[3]],
        "fc100/test": [SUPERCLASSES[0]],
    }
    for name, entries in lists.items():
        path = tmp_path / "splits" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
    return write


def test_classes_of_both_files_are_joined(cifar: Write) -> None:
    dataset = load_cifar_fs(cifar(), "train", **TINY)
    assert list(dataset.class_names) == ["super03/class09", "super14/class02", "super05/class55"]
    assert dataset.images.shape == (12, 3, 32, 32)
    for label, rows in zip((9, 2, 55), dataset.class_indices, strict=True):
        red, green, blue = dataset.images[rows].unbind(1)
        assert (red == label).all()
        assert sorted(green[:, 0, 0].tolist()) == [0, 1, 2, 3]
        assert (blue == torch.arange(32).view(32, 1)).all()
    x = dataset.inputs(torch.arange(12))
    assert torch.equal(x, dataset.images.float() / 255)  # not normalised


def test_fc100_takes_whole_superclasses(cifar: Write) -> None:
    train, test = (load_fc100(cifar(), split, **TINY) for split in ("train", "test"))
    assert train.num_classes == 10
    assert [name[:7] for name in train.class_names] == ["super07"] * 5 + ["super03"] * 5
    assert [name[:7] for name in test.class_names] == ["super00"] * 5
    assert set(test.images[:, 0].unique().tolist()) == {c for c in range(100) if above(c) == 0}


def test_folder_archive_and_pickles_of_both_pythons_give_equal_arrays(
    cifar: Write, tmp_path: Path
) -> None:
    first = load_cifar_fs(cifar(), "train", **TINY)
    again = load_cifar_fs(cifar(pickle.dumps), "train", **TINY)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-100-python", "cifar-100-python")
    (tmp_path / "cifar-100-python").rename(tmp_path / "elsewhere")
    archived = load_cifar_fs(tmp_path, "train", **TINY)
    for other in (again, archived):
        assert torch.equal(other.images, first.images)
        assert torch.equal(other.labels, first.labels)
        assert list(other.class_names) == list(first.class_names)


def test_lists_may_be_text_files_in_another_folder(cifar: Write, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("class09\nclass02\nclass55\n")
    first = load_cifar_fs(cifar(), "train", **TINY)
    other = load_cifar_fs(tmp_path, "train", splits=tmp_path, **TINY)
    assert list(other.class_names) == list(first.class_names)
    assert load_cifar_fs(tmp_path, "val", **TINY).num_classes == 2


def test_an_incomplete_split_is_refused(cifar: Write) -> None:
    with pytest.raises(DataError, match=r"expected 64 classes; found 3.*pass complete=False"):
        load_cifar_fs(cifar(), "train")
    with pytest.raises(DataError, match="expected 20 classes; found 5"):
        load_fc100(cifar(), "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a list of names; found JSONDecodeError"),
        ("[1]", "a list of names; found TypeError"),
        ("[]", "distinct classes; found 0"),
        ('["class01", "class77", "class01"]', "distinct classes; found 2 in 3 entries"),
        ('["class01", "super07"]', "distinct classes; found 5 in 6 entries"),
        ('["class100"]', "classes or superclasses of CIFAR-100; found 'class100'"),
        ('[["super00", "class01"]]', "found 'super00/class01'"),
    ],
)
def test_malformed_lists_are_refused(cifar: Write, content: str, message: str) -> None:
    root = cifar()
    (root / "splits" / "cifar-fs" / "train.json").write_text(content)
    with pytest.raises(DataError, match=rf"cifar-fs/train\.json: .*{message}"):
        load_cifar_fs(root, "train", **TINY)


def test_missing_lists_are_named(cifar: Write) -> None:
    with pytest.raises(DataError, match=r"splits/cifar-fs/test: expected a list \.json or \.txt"):
        load_cifar_fs(cifar(), "test", **TINY)


LABELS = [c for c in range(100) for _ in range(3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"data": [1]}}, r"train: expected data \(n, 3072\) of uint8"),
        ({"train": {"data": np.zeros((300, 3071), np.uint8)}}, "data .n, 3072. of uint8"),
        ({"train": {"data": np.zeros((300, 3072))}}, "data .n, 3072. of uint8"),
        ({"train": {"fine_labels": LABELS[1:]}}, "train: expected fine_labels, 300 of 0..99"),
        ({"train": {"fine_labels": [c + 1 for c in LABELS]}}, "fine_labels, 300 of 0..99"),
        ({"test": {"coarse_labels": [20] * 100}}, "test: expected coarse_labels, 100 of 0..19"),
        ({"test": {"coarse_labels": ["a"] * 100}}, "coarse_labels, 100 of 0..19"),
        ({"train": {"coarse_labels": [0] * 300}}, "each class in one superclass; found 195 pairs"),
        ({"meta": {"fine_label_names": 3}}, "meta: expected a list fine_label_names"),
        ({"meta": {"fine_label_names": CLASSES[:99]}}, "fine_labels, 300 of 0..98"),
    ],
)
def test_inconsistent_files_are_refused(
    cifar: Write, changes: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_cifar_fs(cifar(**changes), "train", **TINY)


def test_a_malicious_pickle_is_refused(cifar: Write) -> None:
    with pytest.raises(DataError, match=r"meta: .*refers to builtins\.print\. None of its code"):
        load_fc100(cifar(pickle.dumps, meta={"coarse_label_names": print}), "train", **TINY)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_truncated_and_missing_files_are_named(cifar: Write, name: str) -> None:
    path = cifar() / "cifar-100-python" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=rf"{name}: expected a complete pickle"):
        load_cifar_fs(path.parent.parent, "train", **TINY)
    path.unlink()
    with pytest.raises(DataError, match=rf"the files train, test and meta; .*{name}"):
        load_cifar_fs(path.parent.parent, "train", **TINY)


def test_broken_archives_are_refused(cifar: Write, tmp_path: Path) -> None:
    folder = cifar() / "cifar-100-python"
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz; found neither"):
        load_cifar_fs(tmp_path / "splits", "train", **TINY)
    path = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder / "train", "cifar-100-python/train")
        archive.add(folder / "meta", "cifar-100-python/meta")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="found no cifar-100-python/test"):
        load_cifar_fs(tmp_path, "train", **TINY)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="a complete file"):
        load_cifar_fs(tmp_path, "train", **TINY)
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="a complete tar archive"):
        load_cifar_fs(tmp_path, "train", **TINY)


def test_unknown_splits_are_refused(cifar: Write) -> None:
    with pytest.raises(ValueError, match="train, val, test; got 'valid'"):
        load_fc100(cifar(), "valid")
