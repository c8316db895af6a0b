"""mini-ImageNet: 100 classes of ILSVRC 2012 with 600 images each (Vinyals et al., 2016)."""

from __future__ import annotations

from pathlib import Path

from fastmeta.data._io.folders import find_folder
from fastmeta.data.datasets._complete import check_complete
from fastmeta.data.datasets._mini_imagenet_files import SOURCE, read_listed
from fastmeta.data.datasets._mini_imagenet_pickle import read_pickled
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import check_split

_CLASSES = {"train": 64, "val": 16, "test": 20}
_EXAMPLES = 600


def load_mini_imagenet(
    root: str | Path,
    split: str,
    *,
    image_size: int = 84,
    complete: bool = True,
    cache: bool = True,
) -> ClassDataset:
    """Loads a split of mini-ImageNet, in either of the forms it is handed on in.

    The list of the split, ``train.csv``, ``val.csv`` or ``test.csv`` with the columns ``filename``
    and ``label``, beside the images, which lie in a folder ``images`` or, if there is none, in an
    ``images.zip`` of it; without a list the pickle ``mini-imagenet-cache-<split>.pkl``, of which
    nothing is run. The classes 64 / 16 / 20 are those of Ravi and Larochelle (2017), whose lists
    these are.

    Pixels are divided by 255 and not normalised, as in the code of Finn et al. (2017); for means
    and standard deviations use ``dataclasses.replace(dataset, normalization=...)``.

    All images of the split are held in memory: 813 MB for the whole "train". Decoding its JPEGs
    takes some 15 s of CPU time, by several threads, the first time; the arrays are then kept in
    ``FASTMETA_CACHE`` (default ``~/.cache/fastmeta``), and made anew when size or time of a source
    file changes.

    Args:
        root: the folder of the files, or the one that has it as ``mini-imagenet/``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image_size: side of the images; those of another size or shape are resized with an
            antialiased bilinear filter.
        complete: whether to insist on all classes with 600 images each. Images that the list
            names must be there in any case.
        cache: whether to keep decoded images.

    Returns:
        Images ``(n, 3, image_size, image_size)``, with the WordNet ids of the classes as names.

    Raises:
        DataError: if files are missing, incomplete or corrupt.
        ImportError: if Pillow is missing and needed.
        ValueError: if an argument is out of range.
    """
    check_split(split)
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1; got {image_size}.")
    names = [f"{split}.csv", f"mini-imagenet-cache-{split}.pkl"]
    folder = find_folder(root, "mini-imagenet", names, SOURCE)
    listed, pickled = (folder / name for name in names)
    if listed.exists():
        dataset = read_listed(listed, image_size, use_cache=cache)
    else:
        dataset = read_pickled(pickled, image_size)
    if complete:
        check_complete(dataset, folder, _CLASSES[split], _EXAMPLES, SOURCE)
    return dataset
