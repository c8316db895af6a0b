from __future__ import annotations

import logging
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fastmeta.data import DataError, load_omniglot
from fastmeta.data._io.cache import cached
from fastmeta.data.datasets import _omniglot_files as omniglot_files

ARRAYS = {"images": np.arange(5000, dtype=np.uint8), "names": np.array(["ä", "bc"])}


def build() -> Mock:
    return Mock(side_effect=lambda: dict(ARRAYS))


def assert_arrays(found: dict[str, np.ndarray]) -> None:
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_the_cache_is_used_the_second_time(cache_folder: Path) -> None:
    maker = build()
    assert_arrays(cached("some", "key", maker))
    assert_arrays(cached("some", "key", maker))
    maker.assert_called_once()
    assert [path.name for path in cache_folder.iterdir()] == ["some.npz"]


def test_another_key_replaces_the_file(cache_folder: Path) -> None:
    cached("some", "old", lambda: {"images": np.zeros(3)})
    assert_arrays(cached("some", "new", build()))
    maker = build()
    assert_arrays(cached("some", "new", maker))
    maker.assert_not_called()
    assert len(list(cache_folder.iterdir())) == 1


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "flipped", "foreign", "pickle", "keyless"]
)
def test_a_corrupt_file_is_rebuilt(
    cache_folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cached("some", "key", build())
    path = cache_folder / "some.npz"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[2500] ^= 1
        path.write_bytes(content)
    elif damage == "pickle":
        np.savez(path, key=np.array("key"), images=np.array([{}], dtype=object))
    elif damage == "keyless":
        np.savez(path, images=np.zeros(3))
    else:
        path.write_bytes({"empty": b"", "truncated": content[:-100], "foreign": b"x"}[damage])
    maker = build()
    with caplog.at_level(logging.WARNING):
        assert_arrays(cached("some", "key", maker))
    maker.assert_called_once()
    assert str(path) in caplog.text
    assert_arrays(cached("some", "key", maker))
    maker.assert_called_once()


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("FASTMETA_CACHE", str(blocked))
    with pytest.warns(RuntimeWarning, match="Set FASTMETA_CACHE"):
        assert_arrays(cached("some", "key", build()))


def test_a_failed_write_leaves_nothing_behind(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "savez", Mock(side_effect=OSError("disk full")))
    with pytest.warns(RuntimeWarning, match="disk full"):
        assert_arrays(cached("some", "key", build()))
    assert list(cache_folder.iterdir()) == []


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Mock:
    spy = Mock(wraps=omniglot_files._decode_all)
    monkeypatch.setattr(omniglot_files, "_decode_all", spy)
    return spy


@pytest.mark.parametrize("form", ["omniglot_folder", "omniglot_zip"])
def test_omniglot_is_decoded_once(request: pytest.FixtureRequest, decode: Mock, form: str) -> None:
    root = request.getfixturevalue(form)
    first = load_omniglot(root, "test", complete=False)
    again = load_omniglot(root, "test", complete=False)
    decode.assert_called_once()
    assert torch.equal(first.images, again.images)
    assert first.class_names == again.class_names
    load_omniglot(root, "test", complete=False, image_size=20)
    assert decode.call_count == 2
    load_omniglot(root, "test", complete=False)
    assert decode.call_count == 2


def test_a_touched_source_is_decoded_again(omniglot_zip: Path, decode: Mock) -> None:
    load_omniglot(omniglot_zip, "test", complete=False)
    os.utime(omniglot_zip / "images_evaluation.zip", (1, 1))
    load_omniglot(omniglot_zip, "test", complete=False)
    assert decode.call_count == 2


def test_a_changed_drawing_is_decoded_again(omniglot_folder: Path, decode: Mock) -> None:
    load_omniglot(omniglot_folder, "test", complete=False)
    folder = omniglot_folder / "images_evaluation" / "Gamma" / "character01"
    (folder / "0001_03.png").unlink()
    dataset = load_omniglot(omniglot_folder, "test", complete=False)
    assert decode.call_count == 2
    assert len(dataset) == 5


def test_the_cache_does_not_hide_corruption(omniglot_zip: Path) -> None:
    load_omniglot(omniglot_zip, "test", complete=False)
    path = omniglot_zip / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="a complete zip archive"):
        load_omniglot(omniglot_zip, "test", complete=False)


def test_the_cache_can_be_disabled(omniglot_zip: Path, cache_folder: Path) -> None:
    load_omniglot(omniglot_zip, "test", complete=False, cache=False)
    assert not cache_folder.exists()
