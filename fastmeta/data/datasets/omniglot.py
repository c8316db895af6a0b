"""Omniglot: 1,623 characters of 50 alphabets, drawn 20 times each (Lake et al., 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from fastmeta.data._io.errors import data_error
from fastmeta.data._io.folders import find_folder
from fastmeta.data.class_transforms import multiply_classes
from fastmeta.data.datasets._omniglot_files import SOURCE, read_part
from fastmeta.data.datasets._omniglot_splits import (
    BACKGROUND,
    EVALUATION,
    character_ids,
    lake_validation,
    read_vinyals,
)
from fastmeta.data.image_dataset import ClassDataset
from fastmeta.data.splits import check_split

PROTOCOLS = ("lake", "vinyals")

_DRAWINGS = 20
_COMPLETE = {BACKGROUND: (30, 964), EVALUATION: (20, 659)}  # alphabets, characters


def load_omniglot(
    root: str | Path,
    split: str,
    *,
    protocol: str = "lake",
    image_size: int = 28,
    rotations: bool | None = None,
    validation: int | Sequence[str] = 100,
    validation_seed: int = 0,
    splits: str | Path | None = None,
    complete: bool = True,
    cache: bool = True,
) -> ClassDataset:
    """Loads a split of Omniglot: 20 drawings per character, ink 255 on 0.

    The protocol "lake" separates alphabets: "test" is all 659 characters of the 20 evaluation
    alphabets; "val" is 100 of the 964 background characters, drawn uniformly with
    `validation_seed`, and "train" the other 864. The protocol "vinyals" splits characters
    1,028 / 172 / 423 by the lists that later papers share; of its alphabets only Gurmukhi is in
    two splits, train and test.

    Decoding takes some seconds the first time; the arrays are then cached in `FASTMETA_CACHE`
    (default `~/.cache/fastmeta`), and rebuilt when the size or modification time of a source file
    changes.

    Args:
        root: the folder of `images_background` and `images_evaluation` (each a folder
            `<alphabet>/<character>/*.png` or, if there is none, its `.zip`), or a folder with
            the subfolder `omniglot/`.
        split: `"train"`, `"val"` or `"test"`.
        protocol: `"lake"` or `"vinyals"`.
        image_size: height and width of the images, resized with an antialiased bilinear filter.
        rotations: whether to add characters rotated by 90, 180 and 270 degrees as classes. The
            default `None` does so for "train" only; some papers test on them, too.
        validation: with "lake", the number of validation characters, or their alphabets.
        validation_seed: random seed of the draw of validation characters.
        splits: with "vinyals", the folder of `train.json`, `val.json` and `test.json`; by
            default `splits/omniglot-vinyals` beside the folder of the data.
        complete: whether to require all characters with 20 drawings each.
        cache: whether to cache decoded images.

    Returns:
        Images `(n, 1, image_size, image_size)` with class names such as
        `"Greek/character01/rot90"`.

    Raises:
        DataError: if files are missing, incomplete or corrupt.
        ImportError: if Pillow is missing.
        ValueError: if an argument is out of range.
    """
    check_split(split)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1; got {image_size}.")
    markers = [f"{part}{suffix}" for part in (BACKGROUND, EVALUATION) for suffix in (".zip", "")]
    folder = find_folder(root, "omniglot", markers, SOURCE)

    part = partial(_load_part, folder, image_size=image_size, complete=complete, cache=cache)
    if protocol == "vinyals":
        lists = (
            folder.absolute().parent / "splits" / "omniglot-vinyals"
            if splits is None
            else Path(splits)
        )
        wanted = read_vinyals(lists / f"{split}.json")
        dataset = _join([_choose(part(name), names, folder) for name, names in wanted.items()])
    elif split == "test":
        dataset = part(EVALUATION)
    else:
        background = part(BACKGROUND)
        held_out = lake_validation(background.class_names, validation, validation_seed)
        train = sorted(set(range(background.num_classes)) - set(held_out))
        dataset = background.subset(held_out if split == "val" else train)
    rotate = split == "train" if rotations is None else rotations
    return multiply_classes(dataset, rotations=rotate, inversion=False)


def _load_part(
    folder: Path, name: str, *, image_size: int, complete: bool, cache: bool
) -> ClassDataset:
    arrays = read_part(folder, name, image_size, use_cache=cache)
    dataset = ClassDataset(
        torch.from_numpy(arrays["images"])[:, None],
        torch.from_numpy(arrays["labels"]),
        arrays["characters"].tolist(),
    )
    if complete:
        _check_complete(dataset, folder / name, *_COMPLETE[name])
    return dataset


def _check_complete(dataset: ClassDataset, where: Path, alphabets: int, characters: int) -> None:
    fix = f"{SOURCE} To use a part of the dataset on purpose, pass complete=False."
    found = len({name.partition("/")[0] for name in dataset.class_names})
    if (found, dataset.num_classes) != (alphabets, characters):
        raise data_error(
            where,
            expected=f"{alphabets} alphabets with {characters} characters",
            found=f"{found} with {dataset.num_classes}",
            fix=fix,
        )
    for name, indices in zip(dataset.class_names, dataset.class_indices, strict=True):
        if len(indices) != _DRAWINGS:
            raise data_error(
                where / name, expected=f"{_DRAWINGS} drawings", found=f"{len(indices)}", fix=fix
            )


def _choose(dataset: ClassDataset, names: Sequence[str], where: Path) -> ClassDataset:
    return dataset.subset(character_ids(dataset.class_names, names, where))


def _join(parts: Sequence[ClassDataset]) -> ClassDataset:
    names: list[str] = []
    labels = []
    for part in parts:
        labels.append(part.labels + len(names))
        names.extend(part.class_names)
    return ClassDataset(torch.cat([part.images for part in parts]), torch.cat(labels), names)
