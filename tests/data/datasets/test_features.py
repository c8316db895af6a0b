"""NumPy and safetensors files of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastmeta.data import DataError, EpisodeSampler, FeatureDataset, load_features

FEATURES = np.arange(24, dtype=np.float64).reshape(12, 2)
LABELS = np.arange(12) // 2


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES, labels=LABELS.astype(str))
    save_file({"features": FEATURES, "labels": LABELS}, tmp_path / "a.safetensors")
    for split in ("train", "val", "test"):
        first, second = (
            load_features(tmp_path / f"a.{kind}", split, standardize=False)
            for kind in ("npz", "safetensors")
        )
        assert torch.equal(first.features, second.features)
        assert first.class_names == second.class_names
        rows = [2 * int(name) + k for name in first.class_names for k in range(2)]
        assert np.array_equal(first.features.numpy(), FEATURES[rows])
    task = EpisodeSampler(first, 2, 1, 1, tasks=3)[0]
    assert task.support_x.shape == (3, 2, 2)
    assert repr(first) == "FeatureDataset(2 classes, 2 examples each, inputs (2,))"


def test_features_are_standardized_by_those_of_training(tmp_path: Path) -> None:
    constant = np.concatenate([FEATURES, np.ones((12, 1))], axis=1)
    np.savez(tmp_path / "a.npz", features=constant, labels=LABELS)
    train = load_features(tmp_path, "train").features
    assert train.mean(0).abs().max() < 1e-6
    deviation = train.std(0, correction=0)
    assert torch.allclose(deviation, torch.tensor([1.0, 1.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": FEATURES}, "the arrays 'features' and 'labels'; found 'x'"),
        ({"features": FEATURES, "labels": LABELS[:5]}, "found float64 .12, 2. and int64 .5,."),
        ({"features": FEATURES * np.nan, "labels": LABELS}, "NaN or infinite"),
        ({"features": FEATURES, "labels": LABELS / 2}, "integer or string labels"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_features(tmp_path / "a.npz", "train")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_damaged_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(b"damaged")
    with pytest.raises(DataError, match="an intact file"):
        load_features(tmp_path, "train")


def test_files_of_different_shapes(tmp_path: Path) -> None:
    for name, width in (("train", 2), ("test", 3)):
        np.savez(tmp_path / f"{name}.npz", features=np.ones((12, width)), labels=LABELS)
    with pytest.raises(DataError, match="one shape in all files"):
        load_features(tmp_path, "train")


def test_refused_tensors() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(TypeError, match="must be float32"):
        FeatureDataset(torch.ones(2, 3).double(), labels, ["a", "b"])
    with pytest.raises(ValueError, match="features must be"):
        FeatureDataset(torch.ones(3, 3), labels, ["a", "b"])
    subset = FeatureDataset(torch.eye(2), labels, ["a", "b"]).subset([1])
    assert subset.features.tolist() == [[0, 1]]
    assert subset.class_names == ["b"]
