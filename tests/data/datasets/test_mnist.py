from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmeta.data import DataError, EpisodeSampler, load_mnist

WriteIdx = Callable[[Path, NDArray[np.uint8]], Path]
LABELS = np.tile(np.arange(10, dtype=np.uint8), 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path, write_idx: WriteIdx) -> Path:
    for name in ("mnist", "fashion-mnist"):
        for prefix in ("train", "t10k"):
            write_idx(tmp_path / name / f"{prefix}-images-idx3-ubyte.gz", IMAGES)
            write_idx(tmp_path / name / f"{prefix}-labels-idx1-ubyte.gz", LABELS)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "digits"), [("train", [0, 1, 2, 5, 6, 8, 9]), ("val", [3]), ("test", [4, 7])]
)
def test_digits_are_held_out(root: Path, split: str, digits: list[int]) -> None:
    dataset = load_mnist(root, split, rotations=False, inversion=False)
    assert list(dataset.class_names) == [str(d) for d in digits]
    for label, digit in enumerate(digits):
        expected = torch.from_numpy(IMAGES[digit == LABELS])[:, None]
        assert torch.equal(dataset.images[dataset.class_indices[label]], expected)


def test_classes_are_multiplied(root: Path) -> None:
    dataset = load_mnist(root, "test")
    assert dataset.num_classes == 16
    assert dataset.images.shape == (2 * 3 * 8, 1, 28, 28)
    seven = torch.from_numpy(IMAGES[7])
    (row, *_) = dataset.class_indices[list(dataset.class_names).index("7/rot90/inv")].tolist()
    assert torch.equal(dataset.images[row, 0], 255 - seven.rot90())


def test_fashion_has_its_own_names_and_split(root: Path) -> None:
    dataset = load_mnist(root, "test", name="fashion-mnist", rotations=False, inversion=False)
    assert list(dataset.class_names) == ["Trouser", "Ankle boot"]


def test_the_root_may_be_the_folder_itself(root: Path) -> None:
    assert load_mnist(root / "mnist", "val").num_classes == 8


def test_other_classes_may_be_held_out(root: Path) -> None:
    options = {"rotations": False, "inversion": False, "val_classes": [9], "test_classes": [1, 2]}
    train = load_mnist(root, "train", **options)
    assert list(train.class_names) == ["0", "3", "4", "5", "6", "7", "8"]
    assert list(load_mnist(root, "test", **options).class_names) == ["1", "2"]
    with pytest.raises(ValueError, match="must be distinct"):
        load_mnist(root, "train", val_classes=[1], test_classes=[1])
    with pytest.raises(ValueError, match="'val' has no class"):
        load_mnist(root, "val", val_classes=[])


def test_three_held_out_digits_make_20_ways_possible(root: Path) -> None:
    options = {"val_classes": (2, 5, 9), "test_classes": (3, 4, 7)}
    datasets = [load_mnist(root, split, **options) for split in ("train", "val", "test")]
    assert [dataset.num_classes for dataset in datasets] == [32, 24, 24]
    digits = [{name.partition("/")[0] for name in dataset.class_names} for dataset in datasets]
    assert sorted(set.union(*digits)) == list("0123456789")
    for dataset in datasets:
        assert EpisodeSampler(dataset, 20, 1, 2, tasks=1)[0].query_y.unique().numel() == 20
    with pytest.raises(ValueError, match="there are 16 classes of 3 examples"):
        EpisodeSampler(load_mnist(root, "test"), 20, 1, 2, tasks=1)


def test_examples_can_be_limited(root: Path) -> None:
    dataset = load_mnist(root, "test", rotations=False, inversion=False, examples_per_class=2)
    assert [len(rows) for rows in dataset.class_indices] == [2, 2]
    assert torch.equal(dataset.images[0, 0], torch.from_numpy(IMAGES[4]))
    with pytest.raises(ValueError, match=r"at most 3, .*'4'; got 4"):
        load_mnist(root, "test", examples_per_class=4)


def test_counts_must_match(root: Path, write_idx: WriteIdx) -> None:
    path = write_idx(root / "mnist" / "train-labels-idx1-ubyte.gz", LABELS[:-1])
    with pytest.raises(DataError, match=r"expected 30 labels.*found 29") as caught:
        load_mnist(root, "train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("labels", [LABELS + 1, np.where(LABELS == 4, 5, LABELS).astype(np.uint8)])
def test_labels_must_be_the_ten_classes(
    root: Path, write_idx: WriteIdx, labels: NDArray[np.uint8]
) -> None:
    write_idx(root / "mnist" / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(DataError, match=r"every label 0\.\.9 and no other; found the labels"):
        load_mnist(root, "train")


def test_images_must_be_28_by_28(root: Path, write_idx: WriteIdx) -> None:
    write_idx(root / "mnist" / "train-images-idx3-ubyte.gz", IMAGES[:, :, :27])
    with pytest.raises(DataError, match="expected 28x28 images; found 28x27"):
        load_mnist(root, "train")


def test_missing_files_are_named(root: Path) -> None:
    (root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: .*no such file"):
        load_mnist(root, "test")
    (root / "mnist" / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz.*Download"):
        load_mnist(root, "test")
    with pytest.raises(DataError, match="no such folder"):
        load_mnist(root / "elsewhere", "test")


def test_unknown_names_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="train, val, test; got 'valid'"):
        load_mnist(root, "valid")
    with pytest.raises(ValueError, match="mnist, fashion-mnist; got 'kmnist'"):
        load_mnist(root, "train", name="kmnist")
