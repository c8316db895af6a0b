"""Whether a data set is the whole one that its papers use."""

from __future__ import annotations

from pathlib import Path

from fastmeta.data._io.errors import data_error
from fastmeta.data.image_dataset import ClassDataset


def check_complete(
    dataset: ClassDataset, where: Path, classes: int, examples: int, source: str
) -> None:
    """Makes sure that there are ``classes`` with ``examples`` images each.

    Args:
        dataset: the classes of a split.
        where: its files, for the message.
        classes: how many there are in the whole split.
        examples: how many images each of them has.
        source: where to get the whole, as a sentence.

    Raises:
        DataError: otherwise.
    """
    fix = f"{source} To use a part of the data on purpose, pass complete=False."
    if dataset.num_classes != classes:
        raise data_error(
            where, expected=f"{classes} classes", found=f"{dataset.num_classes}", fix=fix
        )
    for name, rows in zip(dataset.class_names, dataset.class_indices, strict=True):
        if len(rows) != examples:
            raise data_error(
                where,
                expected=f"{examples} images of each class",
                found=f"{len(rows)} of {name}",
                fix=fix,
            )
