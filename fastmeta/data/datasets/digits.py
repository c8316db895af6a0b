"""The handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastmeta.data._io.errors import missing_package
from fastmeta.data.class_transforms import multiply_classes
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import DIGITS, limit_examples, split_classes

_CLASSES = 10
_INK = 16  # the darkest value of the source


def load_digits(
    split: str,
    *,
    rotations: bool = True,
    inversion: bool = True,
    val_classes: Sequence[int] = DIGITS.val,
    test_classes: Sequence[int] = DIGITS.test,
    examples_per_class: int | None = None,
) -> ClassDataset:
    """1,797 real digits of 8x8 pixels (Alpaydin and Kaynak, 1998), made into many classes.

    Splits and transformations are those of :func:`fastmeta.data.load_mnist`: 4 and 7 are held out
    for test, 3 for validation, and each digit counts 4 * 2 times, turned and inverted. A digit has
    174 to 183 images.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        rotations: whether to add classes turned by 90, 180 and 270 degrees.
        inversion: whether to add negatives as classes.
        val_classes: digits for validation.
        test_classes: digits for test.
        examples_per_class: take the first so many images of each class, not all.

    Returns:
        Images ``(n, 1, 8, 8)``, the 17 grey levels spread over 0..255.

    Raises:
        ImportError: if scikit-learn is missing.
        ValueError: if ``split`` is unknown, or the classes do not make a split.
    """
    classes = split_classes(split, _CLASSES, val_classes, test_classes)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_package("scikit-learn", "The data set 'digits'") from error
    source = datasets.load_digits()
    pixels = torch.from_numpy(source.images) * (255 / _INK)
    dataset = ClassDataset(
        pixels.round().to(torch.uint8)[:, None],
        torch.from_numpy(source.target).to(torch.int64),
        [str(digit) for digit in range(_CLASSES)],
    )
    dataset = limit_examples(dataset.subset(classes), examples_per_class)
    return multiply_classes(dataset, rotations=rotations, inversion=inversion)
