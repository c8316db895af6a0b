"""CIFAR-FS and FC100: the classes of CIFAR-100 (Krizhevsky, 2009), split for few-shot learning."""

from __future__ import annotations

from pathlib import Path

from fastmeta.data.datasets._cifar_files import SOURCE, read_cifar100
from fastmeta.data.datasets._cifar_splits import read_classes
from fastmeta.data.datasets._complete import check_complete
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import check_split

_EXAMPLES = 600  # 500 of the file "train" and 100 of "test"


def load_cifar_fs(
    root: str | Path, split: str, *, splits: str | Path | None = None, complete: bool = True
) -> ClassDataset:
    """Loads a split of CIFAR-FS (Bertinetto et al., 2019): 64 / 16 / 20 classes of CIFAR-100.

    The classes are those of both files of CIFAR-100, of which nothing is run though they are
    pickles. Pixels are divided by 255 and not normalised.

    Args:
        root: the folder of ``cifar-100-python``, a folder with the files ``train``, ``test`` and
            ``meta`` or, if there is none, a ``.tar.gz`` of it.
        split: ``"train"``, ``"val"`` or ``"test"``.
        splits: the folder of the lists of classes, ``train.json``, ``val.json`` and ``test.json``
            or, where there is none, ``.txt``; by default ``splits/cifar-fs`` in ``root``.
        complete: whether to insist on all classes with 600 images each.

    Returns:
        Images ``(n, 3, 32, 32)``; names of classes have the superclass before them, as in
        ``"fish/flatfish"``.

    Raises:
        DataError: if files are missing, incomplete or corrupt.
        ValueError: if ``split`` is unknown.
    """
    classes = {"train": 64, "val": 16, "test": 20}
    return _load(root, "cifar-fs", split, splits, classes if complete else None)


def load_fc100(
    root: str | Path, split: str, *, splits: str | Path | None = None, complete: bool = True
) -> ClassDataset:
    """Loads a split of FC100 (Oreshkin et al., 2018): 60 / 20 / 20 classes of CIFAR-100.

    No superclass is in two splits, of which there are 12 / 4 / 4. All else is as in
    :func:`load_cifar_fs`, with the lists in ``splits/fc100``.
    """
    classes = {"train": 60, "val": 20, "test": 20}
    return _load(root, "fc100", split, splits, classes if complete else None)


def _load(
    root: str | Path,
    name: str,
    split: str,
    splits: str | Path | None,
    complete: dict[str, int] | None,
) -> ClassDataset:
    check_split(split)
    folder = Path(root).expanduser()
    lists = folder / "splits" / name if splits is None else Path(splits).expanduser()
    whole = read_cifar100(folder)
    dataset = whole.subset(read_classes(lists, split, whole.class_names))
    if complete:
        check_complete(dataset, folder, complete[split], _EXAMPLES, SOURCE)
    return dataset
