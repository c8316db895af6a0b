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


def _to_rgb(image: Any) -> Any:
    return image.convert("RGB")


def decode_rgb(
    names: Sequence[str],
    read: Callable[[str], bytes],
    side: int,
    where: Path | None,
    *,
    formats: Sequence[str] = ("JPEG", "PNG"),
    convert: Callable[[Any], Any] = _to_rgb,
    fix: str = "Download it again.",
) -> NDArray[np.uint8]:
    """Decodes images of any size and mode to square RGB images.

    Args:
        names: names of the images.
        read: returns the file content for a name; called from several threads.
        side: size of the result, `S`; images are resized with an antialiased bilinear filter.
        where: file or folder of the images, for error messages; `None` if the names are paths.
        formats: Pillow's names of the formats that are accepted.
        convert: from an image of Pillow to one in RGB.
        fix: advice for a corrupt image.

    Returns:
        `(n, 3, S, S)`.

    Raises:
        DataError: if an image is corrupt or of another format.
        ImportError: if Pillow is missing.
    """
    module = pillow()

    def decode(row: int) -> Any:
        try:
            with module.open(io.BytesIO(read(names[row])), formats=formats) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels")
                return convert(image)
        except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
            raise data_error(
                names[row] if where is None else f"{where}: {names[row]}",
                expected=f"a {', '.join(formats[:-1])} or {formats[-1]} image",
                found=f"a corrupt one ({error})",
                fix=fix,
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
