"""Check that a dataset is complete."""

from __future__ import annotations

from pathlib import Path

from fastmeta.data._io.errors import data_error
from fastmeta.data.image_dataset import ClassDataset


def check_complete(
    dataset: ClassDataset, where: Path, classes: int, examples: int, source: str
) -> None:
    """Checks that a split has `classes` classes with `examples` images each.

    Args:
        dataset: the split.
        where: its files, for the error message.
        classes: number of classes of the complete split.
        examples: number of images of each class.
        source: where to get the complete dataset, as a sentence.

    Raises:
        DataError: if it does not.
    """
    fix = f"{source} To use a part of the dataset on purpose, pass complete=False."
    if dataset.num_classes != classes:
        raise data_error(
            where, expected=f"{classes} classes", found=f"{dataset.num_classes}", fix=fix
        )
    for name, indices in zip(dataset.class_names, dataset.class_indices, strict=True):
        if len(indices) != examples:
            raise data_error(
                where,
                expected=f"{examples} images of each class",
                found=f"{len(indices)} of {name}",
                fix=fix,
            )
