from __future__ import annotations

import sys

import pytest
import torch

from fastmeta.data import load_digits


def test_splits_share_no_digit() -> None:
    pytest.importorskip("sklearn")
    digits = {
        split: {name.partition("/")[0] for name in load_digits(split).class_names}
        for split in ("train", "val", "test")
    }
    assert digits["test"] == {"4", "7"}
    assert digits["val"] == {"3"}
    assert digits["train"] == set("0125689")


def test_images_are_real_digits_as_bytes() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    dataset = load_digits("test", rotations=False, inversion=False)
    assert dataset.images.shape == (181 + 179, 1, 8, 8)
    assert dataset.images.max() == 255
    four = torch.from_numpy(source.images[source.target == 4][0]) / 16
    torch.testing.assert_close(dataset.inputs(torch.tensor(0))[0].double(), four, atol=2e-3, rtol=0)


def test_classes_are_multiplied() -> None:
    pytest.importorskip("sklearn")
    dataset = load_digits("train", examples_per_class=20)
    assert dataset.num_classes == 56
    assert all(len(rows) == 20 for rows in dataset.class_indices)


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "fastmeta\[train\]"'):
        load_digits("train")
