from __future__ import annotations

import pytest
import torch

from fastmeta.data import EpisodeSampler, Jitter, load
from fastmeta.data._rng import TaskRNG


def dots(count: int, height: int = 15, width: int = 21) -> torch.Tensor:
    """A bright 3x3 square in the centre of each image."""
    images = torch.zeros(count, 1, height, width)
    images[:, :, height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 2] = 1
    return images


def centres(images: torch.Tensor) -> torch.Tensor:
    """Offset ``(n, 2)`` of the centre of mass from the centre: rows and columns, in pixels."""
    mass = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in images.shape[-2:])
    return torch.stack([mass.sum(2) @ rows, mass.sum(1) @ columns], dim=1)


def test_shifts_are_in_pixels_and_uniform() -> None:
    moved = centres(Jitter(shift=3).apply(dots(2000), TaskRNG(1, 2)))
    assert moved.abs().max() <= 3.01
    assert (moved.abs().max(0).values > 2.9).all()
    torch.testing.assert_close(moved.std(0), torch.full((2,), 3 / 3**0.5), rtol=0.1, atol=0)


def test_a_quarter_turn_preserves_lengths_on_oblong_images() -> None:
    images = torch.zeros(500, 1, 15, 21)
    images[:, :, 7, 6:15] = 1  # a line of 9 pixels in the middle
    turned = Jitter(degrees=90).apply(images, TaskRNG(3, 4))[:, 0]
    upright = turned.sum(1).max(1).values  # the longest column of each image
    assert 7.5 < upright.max() < 9.5


def test_zoom_is_a_factor_in_both_directions() -> None:
    areas = Jitter(zoom=0.4).apply(dots(2000), TaskRNG(5, 6)).sum((1, 2, 3)) / 9
    assert areas.max() < 1.1 * torch.tensor(0.8).exp()
    assert areas.min() > 0.9 * torch.tensor(-0.8).exp()
    assert areas.max() > 1.8
    assert areas.min() < 0.55


def test_the_border_is_repeated() -> None:
    images = torch.full((50, 2, 8, 8), 7.0)
    torch.testing.assert_close(Jitter(3, 45, 0.5).apply(images, TaskRNG(7, 8)), images)


def test_flips_are_mirror_images_as_often_as_asked() -> None:
    images = torch.rand(3, 1000, 3, 6, 5)
    flipped = Jitter(flip=0.3).apply(images, TaskRNG(9, 1))
    mirrored = (flipped == images.flip(-1)).flatten(2).all(2)
    assert torch.equal(mirrored, (flipped != images).flatten(2).any(2))
    assert abs(mirrored.float().mean() - 0.3) < 5 * (0.3 * 0.7 / 3000) ** 0.5
    assert torch.equal(Jitter(flip=1).apply(images, TaskRNG(9, 1)), images.flip(-1))


def test_a_flip_does_not_change_the_other_transforms() -> None:
    images = torch.rand(20, 3, 84, 84)
    moved = Jitter(3, 10, 0.2).apply(images.flip(-1), TaskRNG(1, 5))
    assert torch.equal(Jitter(3, 10, 0.2, flip=1).apply(images, TaskRNG(1, 5)), moved)


def test_channels_are_transformed_together() -> None:
    images = torch.rand(20, 1, 84, 84).expand(-1, 3, -1, -1)
    moved = Jitter(3, 10, 0.2, 0.5).apply(images, TaskRNG(2, 5))
    assert torch.equal(moved, moved[:, :1].expand_as(moved))


def test_zero_amounts_change_nothing() -> None:
    images = torch.rand(3, 4, 1, 9, 9)
    assert not Jitter()
    assert Jitter(flip=0.1)
    torch.testing.assert_close(Jitter().apply(images, TaskRNG(1, 1)), images)


def test_images_are_transformed_independently_and_reproducibly() -> None:
    data = load("digits", "train")
    plain = EpisodeSampler(data, 5, 1, 3, 4, seed=9)
    sampler = EpisodeSampler(data, 5, 1, 3, 4, seed=9, jitter=Jitter(1, 10, 0.1))
    again = EpisodeSampler(data, 5, 1, 3, 4, seed=9, jitter=Jitter(1, 10, 0.1))
    assert torch.equal(sampler[5].query_x, again[5].query_x)
    assert not torch.equal(sampler[5].query_x, sampler[6].query_x)
    changed = (sampler[5].support_x != plain[5].support_x).flatten(2).any(2)
    assert changed.all()
    assert torch.equal(sampler[5].query_y, plain[5].query_y)


def test_a_flip_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"flip must be a number in \[0, 1\], got 1\.5"):
        Jitter(flip=1.5)


@pytest.mark.parametrize("name", ["shift", "degrees", "zoom", "flip"])
def test_negative_amounts_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, got -1"):
        Jitter(**{name: -1})
