"""Photographs as arrays of one size, decoded by several threads."""

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

# Of a photograph. Ten megabytes of a PNG can be a thousand times as many.
_MOST_PIXELS = 2**25


def decode_rgb(
    names: Sequence[str], read: Callable[[str], bytes], side: int, where: Path
) -> NDArray[np.uint8]:
    """JPEG or PNG images of any size and mode, made square and RGB.

    Args:
        names: of the images.
        read: the file of a name; called by several threads.
        side: of the images, ``S``; resized with an antialiased bilinear filter.
        where: what the names belong to, for messages.

    Returns:
        ``(n, 3, S, S)``.

    Raises:
        DataError: naming an image that is broken or of another format.
        ImportError: if Pillow is missing.
    """
    module = pillow()

    def decode(row: int) -> Any:
        try:
            with module.open(io.BytesIO(read(names[row])), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels")
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
            raise data_error(
                f"{where}: {names[row]}",
                expected="a JPEG or PNG image",
                found=f"a broken one ({error})",
                fix="Get it again.",
            ) from error

    return _stack(len(names), side, decode)


def resize_rgb(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images ``(n, H, W, 3)`` as ``(n, 3, S, S)``, resized as by :func:`decode_rgb`.

    Raises:
        ImportError: if they have another size and Pillow is missing.
    """
    if images.shape[1:3] == (side, side):
        return np.array(images.transpose(0, 3, 1, 2), order="C")
    module = pillow()
    return _stack(len(images), side, lambda row: module.fromarray(images[row]))


def _stack(count: int, side: int, image: Callable[[int], Any]) -> NDArray[np.uint8]:
    """The images of all rows, which Pillow decodes and resizes outside Python's lock."""
    stacked = np.empty((count, 3, side, side), dtype=np.uint8)
    bilinear = pillow().Resampling.BILINEAR

    def fill(row: int) -> None:
        stacked[row] = np.asarray(image(row).resize((side, side), bilinear)).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(count)):
            pass
    return stacked


def pillow() -> ModuleType:
    """Pillow's ``Image`` module.

    Raises:
        ImportError: if it is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("Pillow", "Decoding images") from error
    return Image
