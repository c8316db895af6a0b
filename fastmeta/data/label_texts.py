"""Names of classes as texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.data._io.tokens import token_ids


def label_token_ids(names: Sequence[str], vocabulary: int, length: int = 24) -> Tensor:
    """The token ids of the names of classes, for networks that read what a label means.

    Of a name such as `"banking/freeze_account"` the text is `"freeze account"`: what follows the
    last slash, with spaces for underscores and hyphens.

    Args:
        names: of the classes, such as `dataset.class_names`.
        vocabulary: number of token ids, see [`fastmeta.data.token_ids`][].
        length: token ids per name, see [`fastmeta.data.token_ids`][].

    Returns:
        `(classes, length)` int64.

    Raises:
        ValueError: if two texts have the same ids, or a number is out of range.
    """
    texts = [name.rpartition("/")[2].replace("_", " ").replace("-", " ") for name in names]
    ids = torch.from_numpy(token_ids(texts, vocabulary, length))
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(names, ids.tolist(), strict=True):
        other = seen.setdefault(tuple(row), name)
        if other != name:
            raise ValueError(
                f"the classes {other!r} and {name!r} have the same text; expected texts that tell "
                "classes apart. Name them otherwise, or use more ids per name."
            )
    return ids
