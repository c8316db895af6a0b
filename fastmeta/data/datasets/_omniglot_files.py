"""Reader of Omniglot's archives or folders."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmeta.data._io.archives import open_zip, read_image
from fastmeta.data._io.cache import Arrays, cached, fingerprint, path_hash
from fastmeta.data._io.errors import DataError, data_error
from fastmeta.data._io.images import pillow

SIDE = 105  # pixels of an original drawing
SOURCE = "Download it again from https://github.com/brendenlake/omniglot."

_VERSION = "1"  # of the decoded arrays: increase it when they change


def read_part(folder: Path, part: str, image_size: int, *, use_cache: bool) -> Arrays:
    """All drawings of `images_background` or `images_evaluation`.

    Args:
        folder: the folder that contains the part as a folder or, if there is none, a zip archive.
        part: name of the part.
        image_size: height and width of the resized images, `S`.
        use_cache: whether to cache the decoded arrays, see `fastmeta.data._io.cache.cached`.

    Returns:
        `images` `(n, S, S)` uint8 with ink 255 on 0, `labels` `(n,)` int64, `characters`
        `(classes,)` sorted names such as `"Greek/character01"`.

    Raises:
        DataError: if the part is missing, empty or corrupt.
        ImportError: if Pillow is missing.
    """
    source = folder / part if (folder / part).is_dir() else folder / f"{part}.zip"
    if not source.exists():
        raise data_error(folder, expected=f"{part}/ or {part}.zip", found="neither", fix=SOURCE)
    if not use_cache:
        return _decode_all(source, part, image_size)
    files = sorted(source.glob("*/*/*.png")) if source.is_dir() else [source]
    return cached(
        f"omniglot-{part}-{image_size}-{path_hash(source)}",
        f"{_VERSION}|{image_size}|{fingerprint(files)}",
        lambda: _decode_all(source, part, image_size),
    )


def _decode_all(source: Path, part: str, image_size: int) -> Arrays:
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.glob("*/*/*.png")]
        return _decode_files(source, names, lambda n: (source / n).read_bytes(), image_size)
    with open_zip(source, SOURCE) as archive:
        members = [
            PurePosixPath(name).parts for name in archive.namelist() if name.endswith(".png")
        ]
        names = ["/".join(parts[1:]) for parts in members if len(parts) == 4 and parts[0] == part]
        return _decode_files(
            source, names, lambda n: read_image(archive, f"{part}/{n}"), image_size
        )


def _decode_files(
    source: Path, names: Sequence[str], read: Callable[[str], bytes], image_size: int
) -> Arrays:
    if not names:
        raise data_error(
            source,
            expected="drawings <alphabet>/<character>/<drawing>.png",
            found="none",
            fix=SOURCE,
        )
    images = np.empty((len(names), image_size, image_size), dtype=np.uint8)
    names = sorted(names)
    for row, name in enumerate(names):
        images[row] = _decode(f"{source}: {name}", read(name), image_size)
    drawn = [name.rpartition("/")[0] for name in names]
    characters, labels = np.unique(drawn, return_inverse=True)
    return {"images": images, "labels": labels.astype(np.int64), "characters": characters}


def _decode(where: str, content: bytes, image_size: int) -> NDArray[np.uint8]:
    image_module = pillow()
    try:
        # Decoding does not verify checksums, and an image cannot be used after verify().
        with image_module.open(io.BytesIO(content)) as drawing:
            drawing.verify()
        with image_module.open(io.BytesIO(content)) as drawing:
            if drawing.size != (SIDE, SIDE):
                raise data_error(
                    where,
                    expected=f"{SIDE}x{SIDE} pixels",
                    found="x".join(str(side) for side in drawing.size),
                    fix=SOURCE,
                )
            grey: Any = drawing.convert("L").resize(
                (image_size, image_size), image_module.Resampling.BILINEAR
            )
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise data_error(
            where, expected="a PNG image", found=f"a corrupt one ({error})", fix=SOURCE
        ) from error
    # Ink is 0 on 255 in the files.
    return 255 - np.asarray(grey, dtype=np.uint8)
