from __future__ import annotations

import pytest
import torch

from fastmeta.data import ClassDataset, ImageRegression, Normalization, TaskSource, load
from fastmeta.data.image_regression import downsampled


def photos(count: int = 30, height: int = 4, width: int = 6) -> ClassDataset:
    images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    return ClassDataset(images, labels, ["a", "b"], Normalization((0.5,), (0.2,)))


def test_a_task_is_an_image_at_all_of_its_pixels() -> None:
    dataset = photos()
    batch = ImageRegression(dataset, tasks=5, seed=3)[7]
    assert batch.support_x.shape == (5, 24, 2)
    assert batch.support_y.shape == (5, 24, 3)
    assert torch.equal(batch.support_x, batch.query_x)
    assert torch.equal(batch.support_y, batch.query_y)
    values = (batch.support_y * 255).round().to(torch.uint8)
    known = {image.numpy().tobytes() for image in dataset.images}
    for x, y in zip(batch.support_x, values, strict=True):
        rows = ((x[:, 0] + 1) / 2 * 3).round().long()
        columns = ((x[:, 1] + 1) / 2 * 5).round().long()
        image = torch.zeros(3, 4, 6, dtype=torch.uint8)
        image[:, rows, columns] = y.mT
        assert image.numpy().tobytes() in known
    assert batch.support_x.amin() == -1
    assert batch.support_x.amax() == 1


def test_is_a_pure_function_of_seed_and_index_in_parts() -> None:
    source: TaskSource = ImageRegression(photos(), tasks=5, seed=3)
    whole = source[2]
    assert torch.equal(whole.support_y, source[2].support_y)
    assert torch.equal(source.part(2, 1, 4).support_y, whole.support_y[1:4])
    for other in (source[3], ImageRegression(photos(), tasks=5, seed=4)[2]):
        assert not torch.equal(whole.support_y, other.support_y)


def test_all_images_are_drawn() -> None:
    dataset = ClassDataset(
        torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.zeros(10).long(), ["a"]
    )
    source = ImageRegression(dataset, tasks=500)
    values = (source[0].support_y * 255).round().long().flatten()
    counts = values.bincount(minlength=10)
    assert counts.min() > 20  # 50 +- 6.7 expected
    assert repr(source).startswith("ImageRegression(ClassDataset(1 classes, 10 examples")


def test_downsampling_is_the_mean_of_neighbours() -> None:
    dataset = photos(height=6, width=6)
    small = downsampled(dataset, 3)
    blocks = dataset.images.float().unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean((3, 5))
    assert torch.equal(small.images, blocks.round().to(torch.uint8))
    assert small.images.shape == (30, 3, 3, 3)
    with pytest.raises(ValueError, match=r"size must be at most .* \(6, 6\); got 7"):
        downsampled(dataset, 7)


def test_by_name() -> None:
    found = load("image-regression", "test", of="digits", size=4, rotations=False, inversion=False)
    assert isinstance(found, ClassDataset)
    assert found.images.shape[1:] == (1, 4, 4)
    assert found.num_classes == 2
    with pytest.raises(ValueError, match="of must be one of glyphs"):
        load("image-regression", "test", of="cora")
