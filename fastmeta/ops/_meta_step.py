"""Arguments that the ops of a whole meta-step have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def id_of(ids: Mapping[str, int], name: str, kind: str) -> int:
    """The number of an option that is given by its name.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ids:
        raise ValueError(f"unknown {kind} {name!r}; expected one of {', '.join(ids)}.")
    return ids[name]


def flat_masks(masks: Sequence[Sequence[bool]] | None, count: int, what: str) -> list[int]:
    """The masks of all inner steps over `count` layers or parameters (`what`), as one list.

    Raises:
        ValueError: if there is no mask, or one of another length.
    """
    if masks is None:
        return [1] * count
    if not masks or any(len(mask) != count for mask in masks):
        raise ValueError(
            f"differentiated must have at least one mask, each with one entry for each of the "
            f"{count} {what}; got masks of {[len(mask) for mask in masks]} entries."
        )
    return [int(used) for mask in masks for used in mask]
