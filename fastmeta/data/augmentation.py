"""Small random shifts, turns, zooms and mirror images of training images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta._checks import check_in_range, check_nonnegative
from fastmeta.data._rng import Draws


@dataclass(frozen=True)
class Jitter:
    """Moves every image by a random affine map of its own, so that exact position means nothing.

    Strided networks overfit the position of strokes: on Omniglot jitter is worth more than doubling
    the training time. Pixels from outside repeat the border.

    Attributes:
        shift: largest shift in pixels, in each direction.
        degrees: largest turn.
        zoom: largest change of size: by a factor between ``exp(-zoom)`` and ``exp(zoom)``.
        flip: probability of a mirror image, left and right exchanged.

    Raises:
        ValueError: if one of them is negative, or ``flip`` is greater than 1.
    """

    shift: float = 0.0
    degrees: float = 0.0
    zoom: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "degrees", "zoom", "flip"):
            check_nonnegative(name, getattr(self, name))
        check_in_range("flip", self.flip, 0, 1, closed=True)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self._moves or self.flip != 0

    @property
    def _moves(self) -> bool:
        return (self.shift, self.degrees, self.zoom) != (0, 0, 0)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The images ``(*s, C, H, W)``, moved; a pure function of ``images`` and ``draws``.

        Raises:
            ValueError: if they are integers: ids of texts or nodes, not pixels.
        """
        if not images.is_floating_point():
            raise ValueError(
                f"jitter moves the pixels of images; got {images.dtype} inputs. Leave it out."
            )
        flat = images.reshape(-1, *images.shape[-3:])
        unit = [torch.from_numpy(draws.uniform(-1.0, 1.0, (len(flat),))) for _ in range(5)]
        if self.flip:
            flipped = (unit[4] < 2 * self.flip - 1).to(flat.device)
            flat = torch.where(flipped.view(-1, 1, 1, 1), flat.flip(-1), flat)
        if self._moves:
            flat = self._move(flat, unit)
        return flat.view(images.shape)

    def _move(self, flat: Tensor, unit: list[Tensor]) -> Tensor:
        height, width = flat.shape[-2:]
        angle, size = unit[0] * math.radians(self.degrees), (unit[1] * self.zoom).exp()
        cos, sin = angle.cos() * size, angle.sin() * size
        # In affine_grid's coordinates an image is 2 wide and 2 high, whatever its pixels.
        ratio = height / width
        rows = (
            torch.stack([cos, -sin * ratio, unit[2] * self.shift * 2 / width], dim=1),
            torch.stack([sin / ratio, cos, unit[3] * self.shift * 2 / height], dim=1),
        )
        maps = torch.stack(rows, dim=1).to(flat)
        grid = F.affine_grid(maps, list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
