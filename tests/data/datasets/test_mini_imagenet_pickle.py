"""mini-ImageNet from pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta.data import DataError, load_mini_imagenet
from tests.data.datasets.mini_imagenet_files import (
    COLOURS,
    FILES,
    TINY,
    replace_images,
    write_folder,
)
from tests.helpers import python2_pickles

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "unpacked" / "mini-imagenet")


@pytest.fixture
def pickled(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the images of ``folder`` as a pickle, with changes."""
    images = [Image.open(folder / "images" / file).resize((84, 84), 2) for file, _ in FILES]
    whole = {
        "image_data": np.stack([np.asarray(image) for image in images]),
        "class_dict": {n: [i for i, (_, c) in enumerate(FILES) if c == n] for n in COLOURS},
    }

    def write(dumps: Callable[[object], bytes] = pickle.dumps, **changes: object) -> Path:
        path = tmp_path / "pickled" / "mini-imagenet-cache-train.pkl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dumps({**whole, **changes}))
        return path.parent

    return write


@pytest.mark.parametrize(
    "dumps", [pickle.dumps, python2_pickles.dumps], ids=["Python 3", "Python 2"]
)
def test_a_pickle_gives_equal_arrays(
    folder: Path, pickled: Callable[..., Path], dumps: Callable[[object], bytes]
) -> None:
    listed = load_mini_imagenet(folder, "train", **TINY)
    dataset = load_mini_imagenet(pickled(dumps), "train", **TINY)
    assert torch.equal(dataset.images, listed.images)
    assert torch.equal(dataset.labels, listed.labels)
    assert list(dataset.class_names) == list(listed.class_names)


def test_pickled_images_are_resized_too(folder: Path, pickled: Callable[..., Path]) -> None:
    arrays = np.random.randint(0, 256, (12, 84, 84, 3), dtype=np.uint8)
    rows = {"n01": np.arange(12)[::-1]}
    dataset = load_mini_imagenet(
        pickled(image_data=arrays, class_dict=rows), "train", image_size=32, **TINY
    )
    replace_images(folder, [Image.fromarray(array) for array in arrays], "PNG")
    listed = load_mini_imagenet(folder, "train", image_size=32, **TINY)
    assert torch.equal(dataset.images, listed.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_data": [1, 2]}, "expected an array image_data and a dictionary class_dict"),
        ({"class_dict": [1, 2]}, "a dictionary class_dict; found image_data, class_dict"),
        ({"image_data": np.zeros((12, 84, 84, 3))}, r"found \(12, 84, 84, 3\) of float64"),
        ({"image_data": np.zeros((12, 3, 84, 84), np.uint8)}, r"found \(12, 3, 84, 84\) of uint8"),
        ({"image_data": np.zeros((0, 84, 84, 3), np.uint8)}, r"found \(0, 84, 84, 3\)"),
        ({"class_dict": {"n01": [*range(11)]}}, "0..11, in one class .* 1 classes with 11 rows"),
        ({"class_dict": {"n01": [*range(12)], "n02": [0]}}, "2 classes with 13 rows"),
        ({"class_dict": {"n01": [*range(1, 13)]}}, "1 classes with 12 rows"),
        ({"class_dict": {"n01": [*range(12)], "n02": []}}, "in one class of class_dict"),
        ({"class_dict": {"n01": np.arange(12.0)}}, "in one class of class_dict"),
        ({"class_dict": {"n01": "abc"}}, "in one class of class_dict"),
        ({"class_dict": {"n01": print}}, "refers to builtins.print. None of its code was run"),
    ],
)
def test_malformed_pickles_are_refused(
    pickled: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_mini_imagenet(pickled(**changes), "train", **TINY)
    assert "mini-imagenet-cache-train.pkl" in str(caught.value)


def test_a_truncated_pickle_is_refused(pickled: Callable[..., Path]) -> None:
    path = pickled() / "mini-imagenet-cache-train.pkl"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="corrupt or truncated"):
        load_mini_imagenet(path.parent, "train", **TINY)
