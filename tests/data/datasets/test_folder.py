"""Images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmeta.data import DataError, EpisodeSampler, load_folder
from fastmeta.data._io import class_folders
from fastmeta.data._io.class_folders import decode_images, find_images, images_below


def write(folder: Path, names: str = "abcdef", images: int = 3, color: bool = False) -> None:
    """Images whose grey level is the place of the class in the alphabet times 10."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(images):
            level = 10 * (ord(name) - ord("a") + 1)
            pixel = (level, 0, level) if color else (level,) * 3
            Image.new("RGB", (6 + k, 5), pixel).save(folder / name / f"{k}.png")


def test_splits_hold_the_images_of_their_classes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    names = []
    for split in ("train", "val", "test"):
        dataset = load_folder(tmp_path, split, image_size=4)
        assert dataset.images.shape == (6, 1, 4, 4)
        for c, name in enumerate(dataset.class_names):
            level = 10 * (ord(name) - ord("a") + 1)
            assert (dataset.images[dataset.class_indices[c]] == level).all()
        names += dataset.class_names
    assert sorted(names) == list("abcdef")


def test_colour_is_decided_by_all_splits(tmp_path: Path) -> None:
    write(tmp_path, "abcde")
    write(tmp_path, "f", color=True)
    assert load_folder(tmp_path, "train", image_size=4).images.shape[1] == 3
    assert load_folder(tmp_path, "train", image_size=4, color="grey").images.shape[1] == 1
    with pytest.raises(ValueError, match="color must be one of auto, grey, rgb; got 'gray'"):
        load_folder(tmp_path, "train", color="gray")


def test_nested_and_divided_folders(tmp_path: Path) -> None:
    write(tmp_path / "train" / "greek")
    write(tmp_path / "test", "xyz")
    train, test = (load_folder(tmp_path, split, image_size=4) for split in ("train", "test"))
    assert len(train.class_names) == 4
    assert set(train.class_names) < {f"greek/{name}" for name in "abcdef"}
    assert test.class_names == ["x", "y", "z"]


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    first = load_folder(tmp_path, "test", image_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(class_folders, "decode_rgb", None)
        again = load_folder(tmp_path, "test", image_size=4)
        assert torch.equal(first.images, again.images)
    os.utime(tmp_path / "a" / "0.png", (0, 0))
    monkeypatch.setattr(class_folders, "decode_rgb", None)
    with pytest.raises(TypeError):
        load_folder(tmp_path, "test", image_size=4)


def test_modes_of_images(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(np.full((4, 4), 200 * 256, dtype=np.uint16)).save(tmp_path / "deep.png")
    turned = Image.new("RGB", (8, 4), "black")
    turned.paste("white", (4, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / f"{name}.png" for name in ("clear", "deep", "turned")]
    white, deep, upright = decode_images(paths, 4)
    assert (white == 255).all()
    assert (deep == 200).all()
    assert upright[0].mean(1)[[0, 3]].tolist() == [0, 255]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images"):
        find_images(tmp_path)
    Image.new("L", (2, 2)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match="1 images outside of folders"):
        find_images(tmp_path)
    assert images_below(tmp_path) == images_below(tmp_path / "loose.png")
    write(tmp_path)
    (tmp_path / "a" / "0.png").write_bytes(b"not a PNG")
    with pytest.raises(DataError, match=r"a/0\.png: expected a JPEG, .*Replace or remove it"):
        load_folder(tmp_path, "train")
    with pytest.raises(DataError, match="no such file or folder"):
        images_below(tmp_path / "nowhere")


def test_classes_of_different_sizes(tmp_path: Path) -> None:
    write(tmp_path, "abcde", images=3)
    write(tmp_path, "f", images=1)
    lists = {"train_classes": list("abcf"), "val_classes": ["d"], "test_classes": ["e"]}
    dataset = load_folder(tmp_path, "train", image_size=4, **lists)
    assert repr(dataset) == "ClassDataset(4 classes, 1 to 3 examples each, inputs (1, 4, 4))"
    sampler = EpisodeSampler(dataset, 3, 1, 2, tasks=20, skip_small=True)
    assert sampler.left_out == ["f"]
    seen = (sampler[0].support_x * 255 / 10).round().unique().tolist()
    assert seen == [1, 2, 3]  # a, b and c
