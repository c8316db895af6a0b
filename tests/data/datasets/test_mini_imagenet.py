from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastmeta.data import ClassDataset, DataError, load_mini_imagenet
from fastmeta.data.datasets import _mini_imagenet_files as mini_imagenet_files
from fastmeta.data.datasets._complete import check_complete
from tests.data.datasets.mini_imagenet_files import (
    COLOURS,
    FILES,
    TINY,
    replace_images,
    write_folder,
    write_list,
)

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "unpacked" / "mini-imagenet")


@pytest.fixture
def zipped(tmp_path: Path, folder: Path) -> Path:
    """The images of ``folder`` in a zip archive."""
    root = tmp_path / "zipped" / "mini-imagenet"
    root.mkdir(parents=True)
    write_list(root, FILES)
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for path in sorted((folder / "images").iterdir(), reverse=True):
            archive.write(path, f"images/{path.name}")
    return root


def test_zip_and_folder_give_equal_arrays(folder: Path, zipped: Path) -> None:
    unpacked = load_mini_imagenet(folder, "train", **TINY)
    archived = load_mini_imagenet(zipped.parent, "train", **TINY)
    assert torch.equal(unpacked.images, archived.images)
    assert torch.equal(unpacked.labels, archived.labels)
    assert list(unpacked.class_names) == list(archived.class_names) == sorted(COLOURS)


def test_labels_belong_to_images(folder: Path) -> None:
    dataset = load_mini_imagenet(folder, "train", **TINY)
    assert dataset.images.shape == (12, 3, 84, 84)
    for name, rows in zip(dataset.class_names, dataset.class_indices, strict=True):
        assert len(rows) == 4
        colour = torch.tensor(COLOURS[name]).view(3, 1, 1)
        assert (dataset.images[rows].int() - colour).abs().max() <= 4  # JPEG is not exact
    x = dataset.inputs(torch.arange(12))
    assert torch.equal(x, dataset.images.float() / 255)  # not normalised


def test_resizing_is_bilinear_and_antialiased(folder: Path) -> None:
    sides = np.random.randint(20, 300, size=(5, 2))
    arrays = [np.random.randint(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sides]
    replace_images(folder, [Image.fromarray(array) for array in arrays], "PNG")
    dataset = load_mini_imagenet(folder, "train", image_size=60, **TINY)
    for image, array in zip(dataset.images, arrays, strict=True):
        exact = torch.from_numpy(array).permute(2, 0, 1)[None].double()
        expected = F.interpolate(exact, (60, 60), mode="bilinear", antialias=True)[0]
        # Pillow rounds to whole numbers after the columns, and again after the rows.
        assert (image - expected).abs().max() < 1.6


def test_every_mode_becomes_rgb(folder: Path) -> None:
    grey = np.full((84, 84), 77, dtype=np.uint8)
    modes = [Image.fromarray(grey).convert(mode) for mode in ("L", "RGB", "CMYK")]
    replace_images(folder, modes, "JPEG")
    dataset = load_mini_imagenet(folder, "train", **TINY)
    assert (dataset.images.int() - 77).abs().max() <= 2


def test_an_incomplete_split_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected 64 classes; found 3.*pass complete=False"):
        load_mini_imagenet(folder, "train")


def test_incomplete_classes_are_refused(
    traceable: Callable[[Sequence[int]], ClassDataset],
) -> None:
    check_complete(traceable([4, 4]), Path("here"), 2, 4, "Get it.")
    with pytest.raises(DataError, match="here: expected 4 images of each class; found 3 of c1"):
        check_complete(traceable([4, 3]), Path("here"), 2, 4, "Get it.")


@pytest.mark.parametrize("form", ["folder", "zipped"])
def test_missing_images_are_counted(request: pytest.FixtureRequest, form: str) -> None:
    root = request.getfixturevalue(form)
    write_list(root, [("a.jpg", "n01"), *FILES, ("b.jpg", "n02")])
    with pytest.raises(DataError, match=r"the 14 images .* 2 missing, the first a\.jpg"):
        load_mini_imagenet(root, "train", **TINY)


def test_missing_files_are_named(tmp_path: Path, folder: Path, zipped: Path) -> None:
    with pytest.raises(DataError, match=r"val\.csv or mini-imagenet-cache-val\.pkl here or in"):
        load_mini_imagenet(folder, "val")
    with pytest.raises(DataError, match="no such folder"):
        load_mini_imagenet(tmp_path / "elsewhere", "train")
    (zipped / "images.zip").unlink()
    with pytest.raises(DataError, match=r"images/ or images\.zip; found neither"):
        load_mini_imagenet(zipped, "train", **TINY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header filename,label; found ''"),
        (b"a.jpg,n01\n", "header filename,label; found 'a.jpg,n01'"),
        (b"filename,label\n", "expected images; found only a header"),
        (b"filename,label\nn03_0.jpg\n", r"found \['n03_0.jpg'\] in row 1"),
        (b"filename,label\nn03_0.jpg,\n", "a file name and a label in each row"),
        (b"filename,label\nn03_0.jpg,n03\nn03_0.jpg,n01\n", "each file once; found n03_0.jpg 2"),
        (b"filename,label\n../../secret.jpg,n01\n", r"without a folder; found '\.\./\.\./secret"),
        (b"filename,label\n/etc/passwd,n01\n", "without a folder; found '/etc/passwd' in row 1"),
        (b"filename,label\n..\\secret.jpg,n01\n", "file names without a folder"),
        (b"filename,label\n..,n01\n", "file names without a folder"),
        (b"filename,label\n\xff\xfe,n01\n", "a readable CSV file"),
        (b"filename,label\n\x00,n01\n", "readable CSV|missing"),
    ],
)
def test_malformed_lists_are_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_mini_imagenet(folder, "train", **TINY)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
@pytest.mark.parametrize("form", ["folder", "zipped"])
def test_a_broken_image_is_named(
    request: pytest.FixtureRequest, folder: Path, form: str, damage: str
) -> None:
    path = folder / "images" / "n01_2.jpg"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>", "truncated": content[:-200]}[damage])
    root = request.getfixturevalue(form)
    with pytest.raises(DataError, match=r"images[.zip]*: n01_2\.jpg: expected a JPEG"):
        load_mini_imagenet(root, "train", **TINY)


def test_a_truncated_zip_is_refused(zipped: Path) -> None:
    path = zipped / "images.zip"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"images\.zip: .*truncated one of \d+ bytes"):
        load_mini_imagenet(zipped, "train", **TINY)


def test_damage_inside_a_zip_is_refused(zipped: Path) -> None:
    path = zipped / "images.zip"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a complete zip archive.*Bad CRC"):
        load_mini_imagenet(zipped, "train", **TINY)


@pytest.mark.parametrize("name", ["../evil.jpg", "images/../../evil.jpg", "/tmp/evil.jpg"])
def test_a_zip_slip_is_refused(zipped: Path, name: str) -> None:
    with zipfile.ZipFile(zipped / "images.zip", "a") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(DataError, match=r"within the archive's own folder; found .*evil"):
        load_mini_imagenet(zipped, "train", **TINY)


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Mock:
    spy = Mock(wraps=mini_imagenet_files._decode)
    monkeypatch.setattr(mini_imagenet_files, "_decode", spy)
    return spy


@pytest.mark.parametrize("form", ["folder", "zipped"])
def test_images_are_decoded_once(request: pytest.FixtureRequest, decode: Mock, form: str) -> None:
    root = request.getfixturevalue(form)
    first, again = (load_mini_imagenet(root, "train", **TINY) for _ in range(2))
    decode.assert_called_once()
    assert torch.equal(first.images, again.images)
    load_mini_imagenet(root, "train", image_size=20, **TINY)
    assert decode.call_count == 2
    source = root / "images" / "n01_2.jpg" if form == "folder" else root / "images.zip"
    os.utime(source, (1, 1))
    load_mini_imagenet(root, "train", **TINY)
    assert decode.call_count == 3
    write_list(root, FILES[::-1])
    backwards = load_mini_imagenet(root, "train", **TINY)
    assert torch.equal(backwards.images, first.images.flip(0))


def test_the_cache_can_be_disabled(zipped: Path, cache_folder: Path) -> None:
    load_mini_imagenet(zipped, "train", cache=False, **TINY)
    assert not cache_folder.exists()


def test_invalid_arguments_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="train, val, test; got 'valid'"):
        load_mini_imagenet(folder, "valid")
    with pytest.raises(ValueError, match="image_size must be at least 1; got 0"):
        load_mini_imagenet(folder, "train", image_size=0)


def test_a_missing_package_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'Pillow.*pip install "fastmeta\[train\]"'):
        load_mini_imagenet(folder, "train", **TINY)
