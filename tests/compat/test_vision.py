"""Benchmarks, image datasets and image transforms."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from fastmeta.compat import learn2learn as l2l
from fastmeta.compat.learn2learn.vision import datasets
from fastmeta.data import ClassDataset, DataError


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, ClassDataset]:
    """Splits of six classes with eight images each, in place of every dataset with splits."""
    splits = {
        split: ClassDataset(
            torch.randint(256, (48, 3, 84, 84), dtype=torch.uint8),
            torch.arange(48) % 6,
            [f"{split}{c}" for c in range(6)],
        )
        for split in ("train", "val", "test")
    }
    monkeypatch.setattr(datasets, "load_mini_imagenet", lambda root, split: splits[split])
    for kind in (datasets.CIFARFS, datasets.FC100):
        monkeypatch.setattr(kind, "_load", staticmethod(lambda root, split: splits[split]))
    return splits


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("name", ["mini-imagenet", "cifarfs", "fc100"])
def test_benchmarks(name: str, device: str | None, files: dict[str, ClassDataset]) -> None:
    pytest.importorskip("PIL")
    train, validation, test = l2l.vision.benchmarks.get_tasksets(
        name, train_ways=4, train_samples=3, test_ways=2, test_samples=5, device=device
    )
    scale = 255 if name == "mini-imagenet" else 1
    for tasks, split, sizes in ((train, "train", [3] * 4), (validation, "val", [5] * 2)):
        x, y = tasks.sample()
        assert y.bincount().tolist() == sizes
        image = (x[0] * 255 / scale).round().to(torch.uint8)
        assert (files[split].images == image).flatten(1).all(1).sum() == 1
    assert test.sample()[1].bincount().tolist() == [5] * 2
    y = train.sample()[1]
    assert y.diff().count_nonzero() == 3  # grouped by class


def test_normalized_mini_imagenet(files: dict[str, ClassDataset]) -> None:
    get = l2l.vision.benchmarks.get_tasksets
    tasks = get("mini-imagenet", train_ways=2, train_samples=2, data_augmentation="normalize")
    assert 0.9 < tasks.train.sample()[0].max() <= 1
    with pytest.raises(ValueError, match="None or 'normalize'; got 'lee2019'"):
        get("mini-imagenet", data_augmentation="lee2019")


def test_unknown_benchmark() -> None:
    assert set(l2l.vision.benchmarks.list_tasksets()) == {
        "omniglot", "mini-imagenet", "fc100", "cifarfs",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"one of omniglot, .*; got 'tiered-imagenet'"):
        l2l.vision.benchmarks.get_tasksets("tiered-imagenet")


def test_modes(files: dict[str, ClassDataset]) -> None:
    found = datasets.MiniImagenet("anywhere", mode="validation", target_transform=lambda y: y + 9)
    assert torch.equal(found[5][0], files["val"].images[5].float())
    assert found.indices_to_labels[5] == found[5][1] == 14
    with pytest.raises(ValueError, match="train, validation, test; got 'val'"):
        datasets.FC100("anywhere", mode="val")


@pytest.fixture
def omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five and three characters, four drawings each, in the folder layout of torchvision."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    for part, characters in (("images_background", 5), ("images_evaluation", 3)):
        for c in range(characters):
            folder = tmp_path / "omniglot-py" / part / "Alpha" / f"character{c}"
            folder.mkdir(parents=True)
            for d in range(4):
                paper = np.full((105, 105), 255, dtype=np.uint8)
                paper[10 * c : 10 * c + 40, 20 * d : 20 * d + 30] = 0
                image.fromarray(paper).convert("1").save(folder / f"{d}.png")
    return tmp_path


def test_omniglot(omniglot: Path) -> None:
    data = l2l.vision.datasets.FullOmniglot(omniglot)
    assert [data[i][1] for i in range(len(data))] == [c for c in range(8) for _ in range(4)]
    paper, _ = data[4 * 2 + 1]
    assert paper.size == (105, 105)
    assert np.array(paper)[20:60, 20:50].max() == 0
    assert np.array(paper).mean() == pytest.approx(255 * (1 - 40 * 30 / 105**2))

    with pytest.warns(UserWarning, match="the same 1,623 characters"):
        tasks = l2l.vision.benchmarks.get_tasksets("omniglot", 3, 2, 2, 4, root=omniglot)
    x, y = tasks.train.sample()
    assert x.shape == (6, 1, 28, 28)
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    assert y[::2].equal(y[1::2])  # grouped by class
    assert x.sum((1, 2, 3)) == pytest.approx(28**2 * 40 * 30 / 105**2, rel=0.1)  # ink 1
    assert tasks.validation.sample()[1].bincount().tolist() == [4, 4]


def test_missing_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"github\.com/brendenlake/omniglot"):
        l2l.vision.datasets.FullOmniglot(tmp_path, download=True)


def test_rotations() -> None:
    data = l2l.data.MetaDataset(TensorDataset(torch.randn(9, 1, 4, 4), torch.arange(9) % 3))
    turn = l2l.vision.transforms.RandomClassRotation(data, [0.0, 90.0, 180.0, 270.0])
    chain = [l2l.data.transforms.LoadData(data), turn]
    seen = set()
    for _ in range(60):
        x, _ = l2l.data.Taskset(data, chain).sample()
        whole = torch.stack([data[i][0] for i in range(9)])
        seen |= {k for k in range(4) if torch.equal(x, torch.rot90(whole, k, (2, 3)))}
    assert seen == {0, 1, 2, 3}
    angle = random.choice([45.0, 30, -1])
    with pytest.raises(ValueError, match="multiples of 90"):
        l2l.vision.transforms.RandomClassRotation(data, [0.0, angle])


def test_truncated_normal_initialization() -> None:
    weight = l2l.vision.models.fc_init_(torch.nn.Linear(200, 200)).weight / 0.01
    assert weight.abs().max() <= 2
    assert weight.abs().max() > 1.9
    assert abs(weight.mean()) < 0.05
    assert abs(weight.std() - 0.8796) < 0.02  # truncated at two standard deviations
