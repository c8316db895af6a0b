"""Predictions for a user's own examples, from a run on the user's own data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastmeta.cli import main
from fastmeta.data import load_folder
from fastmeta.train import (
    CheckpointError,
    ConfigError,
    configure,
    evaluate_run,
    export_run,
    predict_run,
    train,
)

pytest.importorskip("safetensors", reason="safetensors is not installed")
from safetensors.torch import save_file

SMALL: dict[str, Any] = {
    **{"steps": 2, "meta_batch": 2, "ways": 2, "queries": 2, "eval_queries": 2, "val_tasks": 2},
    **{"test_tasks": 2, "plots": False, "untrained": False, "out": "run"},
}


@pytest.fixture(autouse=True)
def _folder(working_directory: Path) -> None:
    """Seven classes of horizontal or vertical bars, one of which has a single image."""
    random = np.random.default_rng(0)
    for k, name in enumerate("abcdefg"):
        Path("mine", name).mkdir(parents=True)
        for i in range(1 if name == "g" else 4):
            image = random.integers(0, 50, (16, 16), dtype=np.uint8)
            image[2 * k :: 7] = 250
            Image.fromarray(image).save(f"mine/{name}/{i}.png")


def options(**changes: Any) -> dict[str, Any]:
    own = {"dataset": "folder", "data_root": "mine", "hidden": [4]}
    return {**SMALL, **own, "data_options": {"image_size": 16}, **changes}


def test_a_run_keeps_its_classes_when_the_folder_grows() -> None:
    train(configure(options()))
    config = json.loads(Path("run/config.json").read_text())
    held = {split: config["data_options"][f"{split}_classes"] for split in ("train", "test")}
    lists = {f"{split}_classes": names for split, names in held.items()}
    assert load_folder("mine", "test", image_size=16, **lists).class_names == held["test"]
    before = evaluate_run("run", {})["test"]
    for name in ("0", "h", "z"):
        Path("mine", name).mkdir()
        Image.new("L", (16, 16)).save(f"mine/{name}/0.png")
    assert load_folder("mine", "test", image_size=16).class_names != held["test"]
    assert evaluate_run("run", {})["test"] == before


def test_what_is_there_what_was_asked_for_and_what_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lists = {"train_classes": list("abg"), "val_classes": ["c", "d"], "test_classes": ["e", "f"]}
    split = {"data_options": {"image_size": 16, **lists}}
    with pytest.raises(ConfigError) as caught:
        train(configure(options(ways=3, **split)))
    assert str(caught.value) == (
        "dataset 'folder', split 'test': 3 ways need 3 classes of at least 1 + 2 = 3 examples "
        "(shots + queries); there are 2 classes of 4 examples. What fits: --ways 2. Or add "
        "examples, or classes."
    )
    with pytest.raises(ConfigError, match="What fits: --eval-queries 3"):
        train(configure(options(eval_queries=9, **split)))
    with pytest.raises(ConfigError, match=r"Pass root=\.\.\. \(--data-root PATH\)"):
        train(configure(options(data_root=None)))
    train(configure(options(**split)))
    assert "left out as too small: g\n" in capsys.readouterr().err


def test_predictions_and_their_picture(capsys: pytest.CaptureFixture[str]) -> None:
    train(configure(options(steps=30, ways=2, inner_lr=0.4)))
    for name in "ae":
        Path("examples", name).mkdir(parents=True)
        for i in range(3):
            shutil.copy(f"mine/{name}/{i}.png", f"examples/{name}")
        Path("new", name).mkdir(parents=True)
        shutil.copy(f"mine/{name}/3.png", f"new/{name}")
    capsys.readouterr()
    arguments = ["predict", "run", "examples", "new/a", "new/e/3.png", "--json", "found.json"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "picture: run/predictions.png"
    found = json.loads(Path("found.json").read_text())
    assert found["classes"] == ["a", "e"]
    assert [row["name"] for row in found["inputs"]] == ["new/a/3.png", "new/e/3.png"]
    assert [row["class"] for row in found["inputs"]] == ["a", "e"]
    assert all(sum(row["probabilities"]) == pytest.approx(1) for row in found["inputs"])
    with Image.open("run/predictions.png") as picture:
        assert picture.width > 1000
    with pytest.raises(ConfigError, match="2 to 2 classes, the ways of the run; found 7"):
        predict_run("run", "mine", ["mine"])


@pytest.mark.parametrize("adaptation", ["sgd", "meta-sgd", "anil"])
def test_an_exported_file_predicts_without_the_data(adaptation: str) -> None:
    train(configure(options(steps=20, inner_lr=0.2, method="maml", adaptation=adaptation)))
    export_run("run", "mine.safetensors", {})
    shutil.copytree("mine/a", "examples/a")
    shutil.copytree("mine/b", "examples/b")
    shutil.copytree("mine/c", "new")
    expected = predict_run("run", "examples", ["new"], {"eval_inner_steps": 2})
    shutil.rmtree("mine")
    found = predict_run("mine.safetensors", "examples", ["new"], {"eval_inner_steps": 2})
    assert found.to_dict() == expected.to_dict()
    with pytest.raises(ConfigError, match="eval_inner_steps must be at least 0"):
        predict_run("mine.safetensors", "examples", ["new"], {"eval_inner_steps": -1})


def test_files_that_are_no_exports() -> None:
    save_file({"weight": torch.zeros(1)}, "other.safetensors")
    Path("broken.safetensors").write_bytes(b"no")
    for name, part in (("other", "expected a file of 'fastmeta export'"), ("broken", "be read")):
        with pytest.raises(CheckpointError, match=part):
            predict_run(f"{name}.safetensors", "mine", ["mine"])


def test_predictions_of_texts() -> None:
    words = {"a": "red blue", "b": "cat dog", "c": "one two", "d": "sun moon"}
    words |= {"e": "car bus", "f": "tea milk"}
    rows = [f"{text} {k},{name}" for name, text in words.items() for k in range(4)]
    Path("texts.csv").write_text("\n".join(["text,label", *rows]))
    train(configure({**SMALL, "dataset": "csv", "data_root": "texts.csv", "hidden": [8]}))
    Path("examples.csv").write_text("text,label\nthe red house,colour\nthe cat,animal\n")
    Path("new.txt").write_text("the red house\nthe cat\n")
    export_run("run", "mine.safetensors", {})
    for trained in ("run", "mine.safetensors"):
        found = predict_run(trained, "examples.csv", ["new.txt"], {"eval_inner_steps": 20})
        assert found.predicted == ["colour", "animal"]
        assert str(found).splitlines()[0].startswith("the red house  colour  ")


def test_a_run_on_features_has_no_predictions() -> None:
    labels = np.arange(24) // 4
    features = np.random.default_rng(0).normal(size=(24, 3)) + labels[:, None]
    np.savez("mine.npz", features=features, labels=labels)
    own = {"dataset": "features", "data_root": "mine.npz", "hidden": [8]}
    results = train(configure({**SMALL, **own}))
    assert results is not None
    assert results["metric"] == "accuracy"
    export_run("run", "mine.safetensors", {})
    for trained, part in (("run", "trained on"), ("mine.safetensors", "it is for")):
        with pytest.raises(ConfigError, match=f"{part} dataset 'features'"):
            predict_run(trained, "mine", ["mine"])
