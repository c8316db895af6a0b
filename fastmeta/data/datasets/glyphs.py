"""Characters of many scripts, drawn in the fonts included in matplotlib: no download."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmeta._checks import check_integer, check_nonnegative
from fastmeta.data._io.cache import Arrays, cached
from fastmeta.data._io.errors import missing_package
from fastmeta.data._io.images import pillow
from fastmeta.data._rng import TaskRNG
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import SPLITS, check_split

# Test scripts first: a letter that looks the same in two scripts belongs to the first one only.
_SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "test": ((0x10D0, 0x10F5),),  # Georgian
    "val": ((0x0531, 0x0556), (0x0561, 0x0586)),  # Armenian
    "train": (
        *((0x0030, 0x0039), (0x0041, 0x005A), (0x0061, 0x007A)),  # Latin
        *((0x0180, 0x024F), (0x0250, 0x02AF)),  # Latin extended, International Phonetic Alphabet
        *((0x0391, 0x03C9), (0x0410, 0x044F), (0x0460, 0x052F)),  # Greek, Cyrillic
        *((0x2190, 0x21FF), (0x2200, 0x22FF)),  # arrows, mathematical operators
    ),
}
_FACES = [
    f"DejaVu{family}{style}.ttf"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
]
_CANVAS, _POINTS = 64, 44  # drawn large, then reduced
_DEGREES, _SHIFT, _ZOOM, _SHEAR = 15.0, 0.08, 0.2, 0.2


def load_glyphs(
    split: str, *, image_size: int = 20, examples_per_class: int = 24, distortion: float = 1.0
) -> ClassDataset:
    """Draws characters in the twelve faces of DejaVu, the fonts that matplotlib includes.

    A class is a character; its examples are in all faces (sans serif, monospaced and serif, each
    regular, bold and slanted), and each is rotated, scaled, sheared and shifted at random. Test
    characters are Georgian and validation characters Armenian, scripts that do not occur in
    training, which has Latin, Greek and Cyrillic letters, phonetic and mathematical symbols and
    arrows. Of characters that look the same in several scripts only one is used.

    The images are a function of the arguments and matplotlib's fonts; they are cached in
    `FASTMETA_CACHE` (default `~/.cache/fastmeta`).

    Args:
        split: `"train"`, `"val"` or `"test"`.
        image_size: height and width of the images.
        examples_per_class: images of each character.
        distortion: factor of the random transformations: up to 15 degrees, a zoom and a shear of
            0.2, and a shift by 8 % of the width.

    Returns:
        Images `(n, 1, image_size, image_size)`, white on black, with the characters as class names.

    Raises:
        ImportError: if matplotlib or Pillow is missing.
        ValueError: if an argument is out of range.
    """
    check_split(split)
    check_integer("image_size", image_size, 1)
    check_integer("examples_per_class", examples_per_class, 1)
    check_nonnegative("distortion", distortion)
    matplotlib = _matplotlib()
    options = f"{image_size}-{examples_per_class}-{distortion:g}"

    def build() -> Arrays:
        names = _characters()
        drawn = {
            part: _draw(names[part], image_size, examples_per_class, distortion) for part in names
        }
        return {**drawn, **{f"{part}_names": np.array(names[part]) for part in names}}

    arrays = cached(f"glyphs-{options}", f"1|{matplotlib.__version__}", build)
    names: list[str] = arrays[f"{split}_names"].tolist()
    labels = torch.arange(len(names)).repeat_interleave(examples_per_class)
    return ClassDataset(torch.from_numpy(arrays[split]), labels, names)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package("matplotlib", "The dataset 'glyphs'") from error
    return matplotlib


@cache
def _fonts() -> list[Any]:
    pillow()
    from PIL import ImageFont

    folder = Path(_matplotlib().get_data_path()) / "fonts" / "ttf"
    return [ImageFont.truetype(str(folder / face), _POINTS) for face in _FACES]


def _characters() -> dict[str, list[str]]:
    """The characters of each split that all faces have, without those that look alike."""
    from matplotlib.ft2font import FT2Font

    maps = [FT2Font(font.path).get_charmap() for font in _fonts()]
    seen: set[bytes] = set()
    found: dict[str, list[str]] = {}
    for split, blocks in _SCRIPTS.items():
        found[split] = []
        for code in (code for first, last in blocks for code in range(first, last + 1)):
            if all(code in known for known in maps):
                picture = bytes(_fonts()[0].getmask(chr(code)))
                if picture not in seen:
                    found[split].append(chr(code))
                seen.add(picture)
    return {split: found[split] for split in SPLITS}


def _draw(characters: list[str], side: int, examples: int, distortion: float) -> NDArray[np.uint8]:
    images = [image for name in characters for image in _examples(name, side, examples, distortion)]
    return np.stack(images)[:, None]


def _examples(
    character: str, side: int, examples: int, distortion: float
) -> Iterator[NDArray[np.uint8]]:
    """Images of a character, the faces in turn."""
    image = pillow()
    from PIL import ImageDraw

    unit = TaskRNG(0, ord(character)).uniform(-distortion, distortion, (examples, 6))
    middle = np.array([_CANVAS / 2, _CANVAS / 2])
    for k, (turn, zoom, ratio, shear, *shift) in enumerate(unit):
        font = _fonts()[k % len(_FACES)]
        left, top, right, bottom = font.getbbox(character)
        canvas = image.new("L", (_CANVAS, _CANVAS))
        corner = tuple(middle - ((left + right) / 2, (top + bottom) / 2))
        ImageDraw.Draw(canvas).text(corner, character, font=font, fill=255)
        angle = math.radians(_DEGREES) * turn
        wide, high = (math.exp(_ZOOM * (zoom + sign * ratio / 2)) for sign in (1, -1))
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        inverse = rotation @ np.array([[wide, _SHEAR * shear], [0, high]])
        offset = middle - inverse @ (middle + _SHIFT * _CANVAS * np.array(shift))
        rows = (*inverse[0], offset[0], *inverse[1], offset[1])
        warped = canvas.transform(
            canvas.size, image.Transform.AFFINE, rows, image.Resampling.BILINEAR
        )
        yield np.asarray(warped.resize((side, side), image.Resampling.BOX))
