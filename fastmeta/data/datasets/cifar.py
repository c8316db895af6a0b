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

    Uses the images of both files of CIFAR-100; these are pickles, but none of their code is run.
    Pixels are divided by 255 and not normalized.

    Args:
        root: the folder that contains `cifar-100-python`, a folder with the files `train`,
            `test` and `meta` or, if there is none, its `.tar.gz`.
        split: `"train"`, `"val"` or `"test"`.
        splits: the folder of the class lists, `train.json`, `val.json` and `test.json` or,
            for each that is missing, `.txt`; by default `splits/cifar-fs` in `root`.
        complete: whether to require all classes with 600 images each.

    Returns:
        Images `(n, 3, 32, 32)`; class names include the superclass, as in `"fish/flatfish"`.

    Raises:
        DataError: if files are missing, incomplete or corrupt.
        ValueError: if `split` is unknown.
    """
    classes = {"train": 64, "val": 16, "test": 20}
    return _load(root, "cifar-fs", split, splits, classes if complete else None)


def load_fc100(
    root: str | Path, split: str, *, splits: str | Path | None = None, complete: bool = True
) -> ClassDataset:
    """Loads a split of FC100 (Oreshkin et al., 2018): 60 / 20 / 20 classes of CIFAR-100.

    The splits are disjoint in superclasses, too: 12 / 4 / 4. Everything else is as in
    [`load_cifar_fs`][fastmeta.data.load_cifar_fs], with the lists in `splits/fc100`.
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
    full = read_cifar100(folder)
    dataset = full.subset(read_classes(lists, split, full.class_names))
    if complete:
        check_complete(dataset, folder, complete[split], _EXAMPLES, SOURCE)
    return dataset
