from __future__ import annotations

import pytest
import torch

from fastmeta.data import (
    ClassDataset,
    Normalization,
    add_inversion,
    add_rotations,
    multiply_classes,
)

CORNER = torch.tensor([[9, 0], [0, 0]], dtype=torch.uint8)


@pytest.fixture
def dataset() -> ClassDataset:
    images = torch.stack([CORNER, CORNER * 2]).view(2, 1, 2, 2)
    return ClassDataset(images, torch.tensor([0, 1]), ["7", "8"], Normalization((0.5,), (0.5,)))


def test_rotations_are_counter_clockwise(dataset: ClassDataset) -> None:
    turned = add_rotations(dataset)
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    for k, (row, column) in enumerate(corners):
        (position,) = turned.class_indices[2 * k].tolist()
        image = turned.images[position, 0]
        assert image[row, column] == 9
        assert image.sum() == 9
    assert list(turned.class_names) == [
        "7", "8", "7/rot90", "8/rot90", "7/rot180", "8/rot180", "7/rot270", "8/rot270"
    ]  # fmt: skip


def test_inversion_gives_negatives(dataset: ClassDataset) -> None:
    both = add_inversion(dataset)
    assert list(both.class_names) == ["7", "8", "7/inv", "8/inv"]
    assert torch.equal(both.images[:2], dataset.images)
    assert torch.equal(both.images[2:].int() + both.images[:2].int(), torch.full((2, 1, 2, 2), 255))
    assert both.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rotations", "inversion", "factor"),
    [(False, False, 1), (True, False, 4), (False, True, 2), (True, True, 8)],
)
def test_classes_are_multiplied(
    dataset: ClassDataset, rotations: bool, inversion: bool, factor: int
) -> None:
    more = multiply_classes(dataset, rotations=rotations, inversion=inversion)
    assert more.num_classes == factor * dataset.num_classes
    assert len(more) == factor * len(dataset)
    assert more.images.is_contiguous()
    assert more.normalization == dataset.normalization
    assert ("7/rot90/inv" in more.class_names) == (rotations and inversion)


def test_rotations_need_square_images() -> None:
    flat = ClassDataset(torch.zeros(1, 1, 2, 3, dtype=torch.uint8), torch.tensor([0]), ["a"])
    with pytest.raises(ValueError, match="square images; got 2x3"):
        add_rotations(flat)
