"""The handwritten digits included in scikit-learn: real data without a download."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastmeta.data._io.errors import missing_package
from fastmeta.data.class_transforms import multiply_classes
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import DIGITS, limit_examples, split_classes

_CLASSES = 10
_MAX_VALUE = 16  # of the original pixels


def load_digits(
    split: str,
    *,
    rotations: bool = True,
    inversion: bool = True,
    val_classes: Sequence[int] = DIGITS.val,
    test_classes: Sequence[int] = DIGITS.test,
    examples_per_class: int | None = None,
) -> ClassDataset:
    """Loads 1,797 digits of 8x8 pixels (Alpaydin and Kaynak, 1998), with transformed classes.

    Splits and transformations are those of [`fastmeta.data.load_mnist`][]: 4 and 7 are held out
    for test, 3 for validation, and each digit gives 4 * 2 classes by rotation and inversion. A
    digit has 174 to 183 images.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        rotations: whether to add classes rotated by 90, 180 and 270 degrees.
        inversion: whether to add negatives as classes.
        val_classes: digits for validation.
        test_classes: digits for test.
        examples_per_class: use only the first images of each class, this many; all by default.

    Returns:
        Images `(n, 1, 8, 8)`, the 17 grey levels scaled to 0..255.

    Raises:
        ImportError: if scikit-learn is missing.
        ValueError: if `split` is unknown, or the held-out classes are invalid.
    """
    classes = split_classes(split, _CLASSES, val_classes, test_classes)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_package("scikit-learn", "The dataset 'digits'") from error
    source = datasets.load_digits()
    pixels = torch.from_numpy(source.images) * (255 / _MAX_VALUE)
    dataset = ClassDataset(
        pixels.round().to(torch.uint8)[:, None],
        torch.from_numpy(source.target).to(torch.int64),
        [str(digit) for digit in range(_CLASSES)],
    )
    dataset = limit_examples(dataset.subset(classes), examples_per_class)
    return multiply_classes(dataset, rotations=rotations, inversion=inversion)
