from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fastmeta.data import ClassDataset, Normalization

IMAGES = torch.arange(6 * 2 * 3 * 3, dtype=torch.uint8).view(6, 2, 3, 3)
LABELS = torch.tensor([1, 0, 2, 1, 0, 1])
NAMES = ["a", "b", "c"]


def test_indices_group_the_images_by_class() -> None:
    dataset = ClassDataset(IMAGES, LABELS, NAMES)
    assert [rows.tolist() for rows in dataset.class_indices] == [[1, 4], [0, 3, 5], [2]]
    assert (len(dataset), dataset.num_classes) == (6, 3)


def test_inputs_are_float32_in_the_unit_interval() -> None:
    dataset = ClassDataset(IMAGES, LABELS, NAMES)
    index = torch.tensor([[5, 0], [2, 2]])
    x = dataset.inputs(index)
    assert x.dtype == torch.float32
    assert torch.equal(x, IMAGES[index].float() / 255)


@pytest.mark.parametrize("channels", [1, 2])
def test_normalization_follows_the_division(channels: int) -> None:
    normalization = Normalization((0.2, 0.4)[:channels], (0.5, 0.25)[:channels])
    dataset = ClassDataset(IMAGES, LABELS, NAMES, normalization)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in normalization)
    expected = (IMAGES.float() / 255 - mean) / std
    torch.testing.assert_close(dataset.inputs(torch.arange(6)), expected)


def test_subset_relabels_in_the_given_order() -> None:
    normalization = Normalization((0.5,), (0.5,))
    subset = ClassDataset(IMAGES, LABELS, NAMES, normalization).subset([2, 0])
    assert list(subset.class_names) == ["c", "a"]
    assert subset.labels.tolist() == [0, 1, 1]
    assert torch.equal(subset.images, IMAGES[[2, 1, 4]])
    assert subset.normalization == normalization


@pytest.mark.parametrize("ids", [[], [0, 0], [3], [-1]])
def test_subset_refuses_wrong_classes(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"class_ids must be distinct.* 0\.\.2"):
        ClassDataset(IMAGES, LABELS, NAMES).subset(ids)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_and_pickles_are_equal(duplicate: object) -> None:
    dataset = ClassDataset(IMAGES, LABELS, NAMES, Normalization((0.5,), (0.5,)))
    other = duplicate(dataset)  # type: ignore[operator]
    assert torch.equal(other.images, IMAGES)
    assert torch.equal(other.labels, LABELS)
    assert list(other.class_names) == NAMES
    assert other.normalization == dataset.normalization
    assert [rows.tolist() for rows in other.class_indices] == [[1, 4], [0, 3, 5], [2]]


def test_pickle_size_depends_only_on_the_images() -> None:
    labels = torch.arange(500).repeat(10)
    images = torch.zeros(5000, 1, 1, 1, dtype=torch.uint8)
    dataset = ClassDataset(images, labels, [str(c) for c in range(500)])
    assert len(pickle.dumps(dataset)) < 2 * (images.nbytes + labels.nbytes)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "must be uint8"),
        (IMAGES, LABELS.int(), "labels int64"),
    ],
)
def test_wrong_dtypes_are_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ClassDataset(images, labels, NAMES)


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES[:, 0], LABELS, NAMES, r"\(n, C, H, W\)"),
        (IMAGES, LABELS[:5], NAMES, r"\(6, 2, 3, 3\) and \(5,\)"),
        (IMAGES, LABELS, ["a", "b"], r"0\.\.1 for 2 class_names; got 0\.\.2"),
        (IMAGES, LABELS - 1, NAMES, r"got -1\.\.1"),
        (IMAGES, LABELS, ["a", "b", "c", "d"], "got none of d"),
        (IMAGES, LABELS, ["a", "b", "a"], "got a more than once"),
        (IMAGES[:0], LABELS[:0], NAMES, "no labels"),
    ],
)
def test_inconsistent_parts_are_refused(
    images: torch.Tensor, labels: torch.Tensor, names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ClassDataset(images, labels, names)


@pytest.mark.parametrize(
    "normalization", [Normalization((0.0,) * 3, (1.0,)), Normalization((0.0,), (0.0,))]
)
def test_invalid_normalization_is_refused(normalization: Normalization) -> None:
    with pytest.raises(ValueError, match="1 or 2 means"):
        ClassDataset(IMAGES, LABELS, NAMES, normalization)
