"""Images in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmeta.data._io.errors import data_error
from fastmeta.data._io.images import decode_rgb

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)  # ITU-R 601-2
_FIX = "Expected is a folder of images for each class, such as cats/1.jpg and dogs/1.jpg."


def find_images(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, a folder at any depth that contains images.

    Args:
        folder: of the classes; hidden files and files of other kinds are ignored.

    Returns:
        By path of the class relative to `folder`, such as `"cats"` or `"greek/alpha"`; names and
        paths are sorted. Images directly in `folder` belong to no class.

    Raises:
        DataError: if it is no folder, or has no images in folders.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise data_error(folder, expected="a folder with a folder per class", found=found, fix=_FIX)
    classes = {}
    for at, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = images_in(Path(at))
        if images and Path(at) != folder:
            classes[Path(at).relative_to(folder).as_posix()] = images
    if not classes:
        loose = len(images_in(folder))
        found = f"{loose} images outside of folders" if loose else "no images"
        raise data_error(folder, expected="a folder of images per class", found=found, fix=_FIX)
    return dict(sorted(classes.items()))


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def decode_images(paths: Sequence[Path], side: int) -> NDArray[np.uint8]:
    """Images of any size and mode as RGB `(n, 3, side, side)`.

    They are turned as their EXIF orientation says, and transparent pixels become white.

    Raises:
        DataError: if an image is corrupt or of another format.
        ImportError: if Pillow is missing.
    """
    return decode_rgb(
        [str(path) for path in paths],
        lambda name: Path(name).read_bytes(),
        side,
        None,
        formats=FORMATS,
        convert=_upright_and_opaque,
        fix="Replace or remove it.",
    )


def images_below(path: Path) -> list[Path]:
    """An image itself, or all images in a folder and its folders, sorted.

    Raises:
        DataError: if there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(image for at, _, _ in os.walk(path) for image in images_in(Path(at)))
    if not found:
        raise data_error(
            path,
            expected="an image, or a folder of images",
            found="no image" if path.is_dir() else "no such file or folder",
            fix=f"Images end in {', '.join(SUFFIXES)}.",
        )
    return found


def to_grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB images `(n, 3, H, W)` as grey ones `(n, 1, H, W)`."""
    grey = (images * _LUMA).sum(1, keepdims=True)
    return np.asarray(grey.round().astype(np.uint8))


def is_grey(images: NDArray[np.uint8]) -> bool:
    """Whether RGB images `(n, 3, H, W)` are without colour."""
    red, green, blue = images[:, 0], images[:, 1], images[:, 2]
    return bool((red == green).all() and (green == blue).all())


def _upright_and_opaque(image: Any) -> Any:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")
