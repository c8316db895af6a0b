"""Intent classification: CLINC150 (Larson et al., 2019) and Banking77 (Casanueva et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastmeta.data._io.folders import find_folder
from fastmeta.data._io.tokens import token_ids
from fastmeta.data.datasets._intents_files import (
    BANKING77_SOURCE,
    CLINC150_SOURCE,
    Texts,
    read_banking77,
    read_clinc150,
)
from fastmeta.data.id_datasets import TextDataset
from fastmeta.data.splits import draw_split

VOCABULARY = 2**12
LENGTH = 96

# Sizes of Dopierre et al., "ProtAugment" (2021), who draw five other splits.
_CLINC150_INTENTS = (50, 50, 50)
_BANKING77_INTENTS = (25, 25, 27)
_CLINC150_DOMAINS = (4, 1, 5)  # ours


def load_clinc150(
    root: str | Path,
    split: str,
    *,
    split_by: str = "intent",
    split_seed: int = 0,
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
) -> TextDataset:
    """Loads a split of CLINC150: 150 intents of 10 domains, 150 texts each.

    Intents are split 50/50/50 into train, val and test, or domains 4/1/5 (60, 15 and 75 intents),
    so that test tasks are from other domains than training tasks. The official split of texts is
    not used: an intent has all of its in-scope texts.

    Args:
        root: the folder of `data_full.json` and `domains.json`, or a folder with the subfolder
            `clinc150/`.
        split: `"train"`, `"val"` or `"test"`.
        split_by: `"intent"` or `"domain"`.
        split_seed: seed of the split of intents or domains, `0 <= split_seed < 2**64`.
        vocabulary: number of token ids, see [`fastmeta.data.token_ids`][].
        length: token ids per text, see [`fastmeta.data.token_ids`][].

    Returns:
        Texts `(n, length)` with class names such as `"banking/transfer"`.

    Raises:
        DataError: if a file is missing, truncated or corrupt.
        ValueError: if an argument is out of range.
    """
    if split_by not in ("intent", "domain"):
        raise ValueError(f"split_by must be one of intent, domain; got {split_by!r}.")
    folder = find_folder(root, "clinc150", ["data_full.json"], CLINC150_SOURCE)
    texts = read_clinc150(folder)
    names = sorted(texts)
    if split_by == "intent":
        chosen = [names[c] for c in draw_split(split, _CLINC150_INTENTS, split_seed)]
    else:
        domains = sorted({_domain(name) for name in names})
        chosen_domains = [domains[d] for d in draw_split(split, _CLINC150_DOMAINS, split_seed)]
        chosen = [name for name in names if _domain(name) in chosen_domains]
    return _tokenize(texts, chosen, vocabulary, length)


def load_banking77(
    root: str | Path,
    split: str,
    *,
    split_seed: int = 0,
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
) -> TextDataset:
    """Loads a split of Banking77: 77 intents of one domain, 75 to 227 texts each.

    Intents are split 25/25/27 into train, val and test; an intent has all of its texts, those of
    the official train and test files together.

    Args:
        root: the folder of `train.csv` and `test.csv`, or a folder with the subfolder
            `banking77/`.
        split: `"train"`, `"val"` or `"test"`.
        split_seed: seed of the split of intents, `0 <= split_seed < 2**64`.
        vocabulary: number of token ids, see [`fastmeta.data.token_ids`][].
        length: token ids per text, see [`fastmeta.data.token_ids`][].

    Returns:
        Texts `(n, length)` with class names such as `"card_arrival"`.

    Raises:
        DataError: if a file is missing, truncated or corrupt.
        ValueError: if an argument is out of range.
    """
    folder = find_folder(root, "banking77", ["train.csv"], BANKING77_SOURCE)
    texts = read_banking77(folder)
    names = sorted(texts)
    chosen = [names[c] for c in draw_split(split, _BANKING77_INTENTS, split_seed)]
    return _tokenize(texts, chosen, vocabulary, length)


def _domain(name: str) -> str:
    return name.partition("/")[0]


def _tokenize(texts: Texts, intents: Sequence[str], vocabulary: int, length: int) -> TextDataset:
    ids = token_ids([text for name in intents for text in texts[name]], vocabulary, length)
    counts = torch.tensor([len(texts[name]) for name in intents])
    labels = torch.arange(len(intents)).repeat_interleave(counts)
    return TextDataset(torch.from_numpy(ids), labels, intents, vocabulary)
