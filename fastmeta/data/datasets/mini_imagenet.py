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
    """Loads a split of mini-ImageNet, in either of its two common formats.

    The first is the list of the split, `train.csv`, `val.csv` or `test.csv` with the columns
    `filename` and `label`, and the images in a folder `images` beside it or, if there is
    none, in `images.zip`. The second, used if there is no list, is the pickle
    `mini-imagenet-cache-<split>.pkl`; none of its code is run. The 64 / 16 / 20 classes are those
    of Ravi and Larochelle (2017), who published the lists.

    Pixels are divided by 255 and not normalized, as in the code of Finn et al. (2017); to normalize
    by mean and standard deviation use `dataclasses.replace(dataset, normalization=...)`.

    All images of the split are loaded into memory: 813 MB for the complete "train". Decoding its
    JPEGs takes some 15 s of CPU time, in several threads, the first time; the arrays are then
    cached in `FASTMETA_CACHE` (default `~/.cache/fastmeta`), and rebuilt when the size or
    modification time of a source file changes.

    Args:
        root: the folder of the files, or a folder with the subfolder `mini-imagenet/`.
        split: `"train"`, `"val"` or `"test"`.
        image_size: height and width of the images; those of another size or shape are resized with
            an antialiased bilinear filter.
        complete: whether to require all classes with 600 images each. The images of the list are
            required in any case.
        cache: whether to cache decoded images.

    Returns:
        Images `(n, 3, image_size, image_size)`, with the WordNet ids of the classes as class
        names.

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
