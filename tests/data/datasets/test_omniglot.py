from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta.data import DataError, load_omniglot

CHARACTERS = [
    "Alpha/character01", "Alpha/character02", "Alpha/character03",
    "Beta/character01", "Beta/character02",
]  # fmt: skip
TINY = {"complete": False, "validation": 2}


def test_zip_and_folder_give_equal_arrays(omniglot_folder: Path, omniglot_zip: Path) -> None:
    for split in ("train", "val", "test"):
        unpacked = load_omniglot(omniglot_folder, split, **TINY)
        zipped = load_omniglot(omniglot_zip.parent, split, **TINY)
        assert torch.equal(unpacked.images, zipped.images)
        assert torch.equal(unpacked.labels, zipped.labels)
        assert unpacked.class_names == zipped.class_names


def test_a_folder_takes_precedence_over_an_archive(omniglot_folder: Path) -> None:
    (omniglot_folder / "images_evaluation.zip").write_bytes(b"not read")
    assert load_omniglot(omniglot_folder, "test", **TINY).num_classes == 2


def test_lake_splits_share_no_character(omniglot_folder: Path) -> None:
    train = load_omniglot(omniglot_folder, "train", rotations=False, **TINY)
    val = load_omniglot(omniglot_folder, "val", **TINY)
    test = load_omniglot(omniglot_folder, "test", **TINY)
    assert (train.num_classes, val.num_classes) == (3, 2)
    assert sorted([*train.class_names, *val.class_names]) == CHARACTERS
    assert list(test.class_names) == ["Gamma/character01", "Gamma/character02"]
    for dataset in (train, val, test):
        assert [len(rows) for rows in dataset.class_indices] == [3] * dataset.num_classes


def test_validation_characters_are_drawn_with_the_seed(omniglot_folder: Path) -> None:
    def names(seed: int) -> tuple[str, ...]:
        val = load_omniglot(omniglot_folder, "val", validation_seed=seed, **TINY)
        return tuple(val.class_names)

    assert names(3) == names(3)
    assert len({names(seed) for seed in range(20)}) > 1


def test_whole_alphabets_may_be_held_out(omniglot_folder: Path) -> None:
    options = {"complete": False, "validation": ["Beta"], "rotations": False}
    assert list(load_omniglot(omniglot_folder, "val", **options).class_names) == CHARACTERS[3:]
    assert list(load_omniglot(omniglot_folder, "train", **options).class_names) == CHARACTERS[:3]


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (5, "less than the 5 background characters; got 5"),
        (0, "at least 1"),
        (["Delta"], "Delta unknown.*There are: Alpha, Beta"),
        (["Alpha", "Beta"], "some, not all"),
        ([], "got 0 of them"),
    ],
)
def test_invalid_validation_sets_are_refused(
    omniglot_folder: Path, validation: int | list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_omniglot(omniglot_folder, "train", complete=False, validation=validation)


@pytest.mark.parametrize(
    ("split", "rotations", "factor"),
    [("train", None, 4), ("val", None, 1), ("test", None, 1), ("test", True, 4)],
)
def test_only_training_characters_are_rotated_by_default(
    omniglot_folder: Path, split: str, rotations: bool | None, factor: int
) -> None:
    plain = load_omniglot(omniglot_folder, split, rotations=False, **TINY)
    dataset = load_omniglot(omniglot_folder, split, rotations=rotations, **TINY)
    assert dataset.num_classes == factor * plain.num_classes
    assert any(name.endswith("/rot90") for name in dataset.class_names) == (factor == 4)


def test_ink_is_bright_and_resizing_preserves_its_amount(omniglot_folder: Path) -> None:
    dataset = load_omniglot(omniglot_folder, "test", **TINY)
    assert dataset.images.shape == (6, 1, 28, 28)
    assert dataset.images.max() == 255
    assert dataset.images[:, :, 0].max() == 0  # the border is paper
    ink = dataset.inputs(torch.arange(6)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(ink, torch.full((6,), 30 * 15 / 105**2), atol=1e-3, rtol=0)


def test_image_size(omniglot_folder: Path) -> None:
    whole = load_omniglot(omniglot_folder, "test", image_size=105, **TINY)
    assert set(whole.images.unique().tolist()) == {0, 255}
    assert (whole.images == 255).sum(dim=(1, 2, 3)).tolist() == [30 * 15] * 6
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        load_omniglot(omniglot_folder, "test", image_size=0, **TINY)


@pytest.fixture
def vinyals(omniglot_folder: Path) -> Path:
    lists = omniglot_folder.parent / "splits" / "omniglot-vinyals"
    lists.mkdir(parents=True)
    content = {
        "train": {
            "background": {"Beta": ["character02"]},
            "evaluation": {"Gamma": ["character01"]},
        },
        "val": {"background": {"Alpha": ["character03", "character01"]}, "evaluation": {}},
        "test": {"background": {"Alpha": ["character09"]}, "evaluation": {}},
    }
    for split, chosen in content.items():
        (lists / f"{split}.json").write_text(json.dumps(chosen))
    return lists


def test_vinyals_lists_choose_characters_of_both_parts(
    omniglot_folder: Path, vinyals: Path
) -> None:
    options = {"protocol": "vinyals", "complete": False, "rotations": False}
    train = load_omniglot(omniglot_folder, "train", **options)
    assert list(train.class_names) == ["Beta/character02", "Gamma/character01"]
    assert train.labels.tolist() == [0] * 3 + [1] * 3
    assert torch.equal(train.images[3:], load_omniglot(omniglot_folder, "test", **TINY).images[:3])
    val = load_omniglot(omniglot_folder, "val", splits=vinyals, **options)
    assert list(val.class_names) == ["Alpha/character03", "Alpha/character01"]


def test_vinyals_characters_must_exist(omniglot_folder: Path, vinyals: Path) -> None:
    with pytest.raises(DataError, match="1 missing, the first Alpha/character09"):
        load_omniglot(omniglot_folder, "test", protocol="vinyals", complete=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "of the form"),
        ('{"background": {}}', "KeyError: 'evaluation'"),
        ('{"background": ["Alpha"], "evaluation": {}}', "AttributeError"),
        ('{"background": {}, "evaluation": {}}', "expected characters; found none"),
    ],
)
def test_malformed_split_lists_are_refused(
    omniglot_folder: Path, vinyals: Path, content: str, message: str
) -> None:
    (vinyals / "val.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_omniglot(omniglot_folder, "val", protocol="vinyals", complete=False)


def test_missing_split_lists_are_named(omniglot_folder: Path) -> None:
    with pytest.raises(DataError, match=r"omniglot-vinyals/val\.json: .*no such file"):
        load_omniglot(omniglot_folder, "val", protocol="vinyals", complete=False)


def test_a_truncated_zip_is_refused(omniglot_zip: Path) -> None:
    path = omniglot_zip / "images_background.zip"
    path.write_bytes(path.read_bytes()[:-200])
    size = path.stat().st_size
    with pytest.raises(DataError, match=f"background.zip: .*truncated one of {size} bytes"):
        load_omniglot(omniglot_zip, "train", **TINY)


def test_damage_inside_a_zip_is_refused(omniglot_zip: Path) -> None:
    path = omniglot_zip / "images_background.zip"
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("01.png"))
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    content[start : start + info.compress_size] = bytes(info.compress_size)
    path.write_bytes(content)
    with pytest.raises(DataError, match="a complete zip archive"):
        load_omniglot(omniglot_zip, "train", **TINY)


@pytest.mark.parametrize("damage", ["empty", "header only", "one byte off", "no end"])
def test_a_broken_png_is_named(omniglot_folder: Path, damage: str) -> None:
    path = omniglot_folder / "images_background" / "Beta" / "character01" / "0001_02.png"
    content = path.read_bytes()
    data = content.index(b"IDAT") + 4
    flipped = content[:data] + bytes([content[data] ^ 1]) + content[data + 1 :]
    broken = {
        "empty": b"",
        "header only": content[:40],
        "one byte off": flipped,
        "no end": content[:-12],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(DataError, match=r"Beta/character01/0001_02\.png: expected a PNG"):
        load_omniglot(omniglot_folder, "train", **TINY)


def test_a_drawing_of_another_size_is_refused(omniglot_folder: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = omniglot_folder / "images_background" / "Beta" / "character01" / "0001_02.png"
    image_module.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match="expected 105x105 pixels; found 28x28"):
        load_omniglot(omniglot_folder, "train", **TINY)


def test_missing_alphabets_are_refused(omniglot_folder: Path) -> None:
    message = "expected 30 alphabets with 964 characters; found 2 with 5.*complete=False"
    with pytest.raises(DataError, match=message):
        load_omniglot(omniglot_folder, "train", validation=2)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "omniglot" / "images_background").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images_background: expected drawings .*; found none"):
        load_omniglot(tmp_path, "train", **TINY)


def test_missing_parts_are_named(tmp_path: Path, omniglot_zip: Path) -> None:
    (omniglot_zip / "images_evaluation.zip").unlink()
    with pytest.raises(DataError, match=r"images_evaluation/ or images_evaluation\.zip"):
        load_omniglot(omniglot_zip, "test", **TINY)
    with pytest.raises(DataError, match=r"images_background\.zip .*no such folder.*brendenlake"):
        load_omniglot(tmp_path / "elsewhere", "test", **TINY)


def test_unknown_names_are_refused(omniglot_folder: Path) -> None:
    with pytest.raises(ValueError, match="lake, vinyals; got 'ravi'"):
        load_omniglot(omniglot_folder, "train", protocol="ravi")
    with pytest.raises(ValueError, match="got 'background'"):
        load_omniglot(omniglot_folder, "background")


def test_a_missing_package_is_explained(
    omniglot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'Pillow.*pip install "fastmeta\[train\]"'):
        load_omniglot(omniglot_folder, "train", **TINY)
