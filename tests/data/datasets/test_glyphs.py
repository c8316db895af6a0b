"""Characters in the fonts of matplotlib."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from fastmeta.data import load_glyphs
from fastmeta.data.datasets import glyphs


@pytest.fixture(autouse=True)
def few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {name: blocks[-3:] for name, blocks in glyphs._SCRIPTS.items()}
    short["train"] = ((0x41, 0x45), (0x0410, 0x0414))  # A to E in Latin and Cyrillic
    monkeypatch.setattr(glyphs, "_SCRIPTS", short)


def test_scripts_of_the_splits() -> None:
    script = {"train": "LATIN|CYRILLIC", "val": "ARMENIAN", "test": "GEORGIAN"}
    sizes = {}
    for split, allowed in script.items():
        dataset = load_glyphs(split, image_size=12, examples_per_class=2)
        assert dataset.images.shape == (2 * dataset.num_classes, 1, 12, 12)
        assert dataset.images.flatten(1).amax(1).min() > 64  # something is drawn
        for name in dataset.class_names:
            assert unicodedata.name(name).split()[0] in allowed
        sizes[split] = dataset.num_classes
    assert sizes["train"] == 8  # the A and the B in both scripts look the same
    assert sizes["test"] == 38


def test_images_are_a_function_of_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"image_size": 12, "examples_per_class": 13}
    first = load_glyphs("train", **options)
    monkeypatch.setattr(glyphs, "cached", lambda name, key, build: build())
    assert torch.equal(load_glyphs("train", **options).images, first.images)
    plain = load_glyphs("train", distortion=0, **options).images.view(-1, 13, 12, 12)
    assert torch.equal(plain[:, 0], plain[:, 12])  # the same face
    assert not torch.equal(plain[:, 0], plain[:, 1])
    assert not torch.equal(first.images.view(-1, 13, 12, 12)[:, 0], plain[:, 0])


def test_out_of_range() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        load_glyphs("all")
    with pytest.raises(ValueError, match="distortion must be"):
        load_glyphs("train", distortion=-1)
