"""Hashing tokenizer: words and their character trigrams as token ids, without a vocabulary file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PADDING = 0

_WORD = re.compile(r"\w+|[^\w\s]")
_GRAM = 3


def token_ids(texts: Sequence[str], vocabulary: int, length: int) -> NDArray[np.int64]:
    """Token ids of each text.

    The tokens of a lower-case word are the word itself in angle brackets and, if that is longer
    than three characters, all trigrams in it (after Bojanowski et al., "Enriching word vectors with
    subword information", 2017): `"<cat>", "<ca", "cat", "at>"`. A punctuation mark is a word. Ids
    are CRC-32 hashes, the same on every platform; different tokens may collide.

    Args:
        texts: `n` texts; one without a word is all padding.
        vocabulary: number of ids, padding included, at least 2.
        length: ids per text, `L`, at least 1: longer texts are truncated, shorter ones padded
            with 0.

    Returns:
        `(n, L)`.

    Raises:
        ValueError: if `vocabulary` or `length` is too small.
    """
    if vocabulary < 2 or length < 1:
        raise ValueError(
            f"vocabulary must be at least 2 and length at least 1; got {vocabulary} and {length}."
        )
    rows = np.full((len(texts), length), PADDING, dtype=np.int64)
    word_ids: dict[str, list[int]] = {}
    for row, text in zip(rows, texts, strict=True):
        ids: list[int] = []
        for word in _WORD.findall(text.lower()):
            if word not in word_ids:
                word_ids[word] = [1 + _hash(token) % (vocabulary - 1) for token in _tokens(word)]
            ids += word_ids[word]
        row[: len(ids)] = ids[:length]
    return rows


def _tokens(word: str) -> list[str]:
    marked = f"<{word}>"
    grams = [marked[i : i + _GRAM] for i in range(len(marked) - _GRAM + 1)]
    return [marked, *grams] if len(marked) > _GRAM else [marked]


def _hash(token: str) -> int:
    # Python's own hash differs from process to process.
    return zlib.crc32(token.encode("utf-8", "surrogatepass"))
