"""Character splits of Omniglot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastmeta.data._io.errors import data_error
from fastmeta.data._rng import TaskRNG, check_seed

BACKGROUND, EVALUATION = "images_background", "images_evaluation"

_VINYALS_FORMAT = '{"background": {alphabet: [characters]}, "evaluation": {...}}'
_VINYALS_SOURCE = (
    "Download it from torchmeta (https://github.com/tristandeleu/pytorch-meta, "
    "torchmeta/datasets/assets/omniglot), or point splits= at its folder."
)


def lake_validation(
    characters: Sequence[str], validation: int | Sequence[str], seed: int
) -> list[int]:
    """The ids of the background characters held out for validation, in ascending order.

    Args:
        characters: all background characters, as `"alphabet/character"`.
        validation: number of characters to draw, or the alphabets to hold out.
        seed: random seed of the draw.

    Raises:
        ValueError: if validation or training would have no characters, or an alphabet is unknown.
    """
    if isinstance(validation, int):
        if not 1 <= validation < len(characters):
            raise ValueError(
                f"validation must be at least 1 and less than the {len(characters)} background "
                f"characters; got {validation}."
            )
        population = np.array([len(characters)])
        return sorted(TaskRNG(check_seed(seed), 0).sample(population, validation)[0].tolist())
    alphabets = [name.partition("/")[0] for name in characters]
    unknown = sorted(set(validation) - set(alphabets))
    if unknown or not validation or set(validation) == set(alphabets):
        problem = f"{', '.join(unknown)} unknown" if unknown else f"{len(validation)} of them"
        raise ValueError(
            f"validation must name some, not all, background alphabets; got {problem}. "
            f"There are: {', '.join(sorted(set(alphabets)))}."
        )
    return [c for c, alphabet in enumerate(alphabets) if alphabet in validation]


def read_vinyals(path: Path) -> dict[str, list[str]]:
    """The characters of a split of Vinyals et al. (2016), from a JSON list.

    Returns:
        For each of `images_background` and `images_evaluation` its `"alphabet/character"`
        names; parts without any are left out.

    Raises:
        DataError: if the file is missing or has another format.
    """
    if not path.is_file():
        raise data_error(path, expected="a split list", found="no such file", fix=_VINYALS_SOURCE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        chosen = {
            part: [f"{alphabet}/{name}" for alphabet, names in group.items() for name in names]
            for part, group in (
                (BACKGROUND, content["background"]),
                (EVALUATION, content["evaluation"]),
            )
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise data_error(
            path,
            expected=f"JSON of the form {_VINYALS_FORMAT}",
            found=f"{type(error).__name__}: {error}",
            fix=_VINYALS_SOURCE,
        ) from error
    if not any(chosen.values()):
        raise data_error(path, expected="characters", found="none", fix=_VINYALS_SOURCE)
    return {part: names for part, names in chosen.items() if names}


def character_ids(characters: Sequence[str], wanted: Sequence[str], where: Path) -> list[int]:
    """The ids of `wanted` among `characters`.

    Raises:
        DataError: if some are missing.
    """
    ids = {name: c for c, name in enumerate(characters)}
    missing = [name for name in wanted if name not in ids]
    if missing:
        raise data_error(
            where,
            expected=f"the {len(wanted)} characters of the split",
            found=f"{len(missing)} missing, the first {missing[0]}",
            fix="Extract or download the archives again.",
        )
    return [ids[name] for name in wanted]
