from __future__ import annotations

import gzip
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmeta.data import ClassDataset


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, so that the user's is not touched."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTMETA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = os.environ.get("FASTMETA_DATA")
    if not root:
        pytest.skip("FASTMETA_DATA does not name a folder of datasets")
    return Path(root)


def _traceable(counts: Sequence[int]) -> ClassDataset:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    rows = torch.arange(len(labels))
    pixels = torch.stack([rows // 256, rows % 256, labels // 256, labels % 256], dim=1)
    return ClassDataset(
        pixels.to(torch.uint8).view(-1, 1, 2, 2), labels, [f"c{c}" for c in range(len(counts))]
    )


@pytest.fixture(scope="session")
def traceable() -> Callable[[Sequence[int]], ClassDataset]:
    """Makes a dataset of 2x2 images whose pixels encode their index and class in base 256."""
    return _traceable


def _write_idx(path: Path, array: NDArray[np.uint8]) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, NDArray[np.uint8]], Path]:
    return _write_idx


TINY = {
    "images_background": {"Alpha": 3, "Beta": 2},
    "images_evaluation": {"Gamma": 2},
}


def _write_omniglot(root: Path, drawings: int = 3) -> Path:
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, alphabets in TINY.items():
        for alphabet, characters in alphabets.items():
            for c in range(1, characters + 1):
                folder = root / part / alphabet / f"character{c:02d}"
                folder.mkdir(parents=True)
                for d in range(1, drawings + 1):
                    paper = np.full((105, 105), 255, dtype=np.uint8)
                    row, column = rng.integers(10, 60, size=2)
                    paper[row : row + 30, column : column + 15] = 0
                    drawing = image_module.fromarray(paper).convert("1")
                    drawing.save(folder / f"{c:04d}_{d:02d}.png")
    return root


@pytest.fixture
def omniglot_folder(tmp_path: Path) -> Path:
    """Synthetic Omniglot: 5 background and 2 evaluation characters, 3 drawings each."""
    return _write_omniglot(tmp_path / "unpacked" / "omniglot")


@pytest.fixture
def omniglot_zip(tmp_path: Path, omniglot_folder: Path) -> Path:
    """The drawings of ``omniglot_folder`` in zip archives."""
    root = tmp_path / "zipped" / "omniglot"
    root.mkdir(parents=True)
    for part in TINY:
        with zipfile.ZipFile(root / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((omniglot_folder / part).rglob("*"), reverse=True):
                archive.write(path, path.relative_to(omniglot_folder))
            archive.writestr(f"__MACOSX/{part}/Alpha/character01/._0001_01.png", b"no drawing")
    return root
