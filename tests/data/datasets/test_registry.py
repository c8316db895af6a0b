from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmeta.data import DATASETS, DataError, datasets_in, load
from tests.helpers.synthetic_files import write_banking77, write_clinc150, write_planetoid


@pytest.fixture
def root(tmp_path: Path, write_idx: Callable[[Path, NDArray[np.uint8]], Path]) -> Path:
    for name in ("mnist", "fashion-mnist"):
        folder = tmp_path / name
        write_idx(folder / "train-images-idx3-ubyte", np.zeros((10, 28, 28), dtype=np.uint8))
        write_idx(folder / "train-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))
    return tmp_path


def test_names() -> None:
    by_kind: dict[str | None, set[str]] = {}
    for name, spec in DATASETS.items():
        by_kind.setdefault(spec.kind, set()).add(name)
        assert (spec.loader is None) == (spec.generator is not None)
    assert by_kind == {
        "images": {
            *("digits", "mnist", "fashion-mnist", "omniglot"),
            *("mini-imagenet", "cifar-fs", "fc100", "glyphs", "folder"),
        },
        "texts": {"clinc150", "banking77", "csv"},
        "features": {"features"},
        "nodes": {"cora", "citeseer"},
        "regression": {"sine"},
        "signals": {"image-regression"},
    }


def test_available_data_sets_are_listed(root: Path) -> None:
    assert datasets_in(root) == ["fashion-mnist", "mnist"]
    (root / "mini-imagenet").mkdir()
    (root / "cifar-100-python.tar.gz").touch()
    found = ["cifar-fs", "fashion-mnist", "fc100", "mini-imagenet", "mnist"]
    assert datasets_in(root) == found
    (root / "cifar-100-python.tar.gz").unlink()
    (root / "cifar-100-python").mkdir()
    assert datasets_in(root) == found
    (root / "planetoid").mkdir()
    assert datasets_in(root) == [*found, "citeseer", "cora"]
    assert datasets_in(root / "elsewhere") == []


def test_options_reach_the_loader(root: Path) -> None:
    dataset = load("mnist", "train", root, rotations=False)
    assert dataset.num_classes == 14
    assert load("fashion-mnist", "val", root, rotations=False).class_names == ["Dress", "Dress/inv"]
    with pytest.raises(TypeError, match="colour"):
        load("mnist", "train", root, colour=True)


@pytest.mark.parametrize(("name", "classes"), [("cora", 7), ("citeseer", 6)])
def test_graphs_are_loaded_by_name(name: str, classes: int, tmp_path: Path) -> None:
    write_planetoid(tmp_path, name, classes)
    assert load(name, "test", tmp_path).num_classes == 2
    with pytest.raises(DataError, match="expected ind"):
        load({"cora": "citeseer", "citeseer": "cora"}[name], "test", tmp_path)


def test_text_data_sets_have_their_options(tmp_path: Path) -> None:
    write_clinc150(tmp_path)
    write_banking77(tmp_path)
    assert load("clinc150", "val", tmp_path, split_by="domain").num_classes == 15
    assert load("banking77", "val", tmp_path, length=3).inputs(torch.arange(2)).shape == (2, 3)


def test_the_root_may_come_from_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMETA_DATA", str(root))
    assert load("mnist", "val").num_classes == 8
    with pytest.raises(DataError, match="omniglot"):
        load("omniglot", "train")
    with pytest.raises(DataError, match="mini-imagenet/"):
        load("mini-imagenet", "train")
    for name in ("cifar-fs", "fc100"):
        with pytest.raises(DataError, match="cifar-100-python/"):
            load(name, "train")


def test_a_missing_root_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMETA_DATA", raising=False)
    with pytest.raises(DataError, match=r"Pass root=\.\.\., or set FASTMETA_DATA"):
        load("mnist", "train")


def test_digits_need_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.delenv("FASTMETA_DATA", raising=False)
    assert load("digits", "val").num_classes == 8


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'cara'.*Did you mean 'cora'"):
        load("cara", "train")


def test_generated_tasks_are_not_loaded() -> None:
    with pytest.raises(
        ValueError, match=r"'sine' .* generated, see fastmeta.data.DATASETS\['sine'"
    ):
        load("sine", "train")
    generator = DATASETS["sine"].generator
    assert generator is not None
    assert generator(4, 2, 3, 0)[0].query_x.shape == (4, 3, 1)
