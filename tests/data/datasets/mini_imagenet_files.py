"""Synthetic mini-ImageNet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

Image = pytest.importorskip("PIL.Image")
TINY = {"complete": False}
COLOURS = {"n03": (250, 20, 30), "n01": (10, 200, 90), "n02": (40, 60, 220)}
FILES = [(f"{name}_{i}.jpg", name) for i in range(4) for name in COLOURS]  # classes take turns


def write_list(folder: Path, rows: Sequence[Sequence[str]], split: str = "train") -> Path:
    path = folder / f"{split}.csv"
    lines = [",".join(row) for row in [("filename", "label"), *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_folder(root: Path) -> Path:
    """Three classes of four JPEGs each, of one colour per class and different sizes."""
    (root / "images").mkdir(parents=True)
    write_list(root, FILES)
    for i, (file, name) in enumerate(FILES):
        Image.new("RGB", (50 + 17 * i, 120 - 3 * i), COLOURS[name]).save(root / "images" / file)
    return root


def replace_images(folder: Path, images: Sequence[Any], form: str) -> None:
    for i, image in enumerate(images):
        image.save(folder / "images" / f"{i}.jpg", format=form)
    write_list(folder, [(f"{i}.jpg", "n01") for i in range(len(images))])
