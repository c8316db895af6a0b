"""Multithreaded decoding of images to arrays of one size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmeta.data._io.errors import data_error, missing_package

# Above any photograph. A PNG can decode to a thousand times its own size.
_MAX_PIXELS = 2**25


def decode_rgb(
    names: Sequence[str], read: Callable[[str], bytes], side: int, where: Path
) -> NDArray[np.uint8]:
    """Decodes JPEG or PNG images of any size and mode to square RGB images.

    Args:
        names: names of the images.
        read: returns the file content for a name; called from several threads.
        side: size of the result, `S`; images are resized with an antialiased bilinear filter.
        where: file or folder of the images, for error messages.

    Returns:
        `(n, 3, S, S)`.

    Raises:
        DataError: if an image is corrupt or of another format.
        ImportError: if Pillow is missing.
    """
    module = pillow()

    def decode(row: int) -> Any:
        try:
            with module.open(io.BytesIO(read(names[row])), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels")
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
            raise data_error(
                f"{where}: {names[row]}",
                expected="a JPEG or PNG image",
                found=f"a corrupt one ({error})",
                fix="Download it again.",
            ) from error

    return _stack(len(names), side, decode)


def resize_rgb(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resizes images `(n, H, W, 3)` to `(n, 3, S, S)`, as `decode_rgb` does.

    Raises:
        ImportError: if they need resizing and Pillow is missing.
    """
    if images.shape[1:3] == (side, side):
        return np.array(images.transpose(0, 3, 1, 2), order="C")
    module = pillow()
    return _stack(len(images), side, lambda row: module.fromarray(images[row]))


def _stack(count: int, side: int, image: Callable[[int], Any]) -> NDArray[np.uint8]:
    """Stacks `count` images, resized by threads: Pillow releases the GIL."""
    stacked = np.empty((count, 3, side, side), dtype=np.uint8)
    bilinear = pillow().Resampling.BILINEAR

    def fill(row: int) -> None:
        stacked[row] = np.asarray(image(row).resize((side, side), bilinear)).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(count)):
            pass
    return stacked


def pillow() -> ModuleType:
    """Pillow's `Image` module.

    Raises:
        ImportError: if it is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("Pillow", "Decoding images") from error
    return Image
