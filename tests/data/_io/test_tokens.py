from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.data import token_ids


def reference_ids(tokens: list[str], vocabulary: int) -> list[int]:
    return [1 + zlib.crc32(token.encode()) % (vocabulary - 1) for token in tokens]


def test_words_and_their_trigrams() -> None:
    expected = ["<my>", "<my", "my>", "<cat>", "<ca", "cat", "at>", "<?>"]
    row = token_ids(["My cat?"], 1000, 10)[0].tolist()
    assert row == [*reference_ids(expected, 1000), 0, 0]
    assert token_ids(["My cat?"], 1000, 5)[0].tolist() == row[:5]


def test_case_and_space_do_not_matter() -> None:
    rows = token_ids(["pay my bill", " PAY\nmy\t bill "], 500, 30)
    np.testing.assert_array_equal(rows[0], rows[1])


@given(st.lists(st.text(), max_size=5), st.integers(2, 300), st.integers(1, 20))
def test_ids_of_any_text(texts: list[str], vocabulary: int, length: int) -> None:
    rows = token_ids(texts, vocabulary, length)
    assert rows.shape == (len(texts), length)
    assert rows.dtype == np.int64
    assert ((rows >= 0) & (rows < vocabulary)).all()
    filled = rows > 0
    assert (filled[:, :-1] | ~filled[:, 1:]).all()  # padding is at the end only
    assert filled.any(1).tolist() == [bool(text.strip()) for text in texts]
    longer = token_ids(texts, vocabulary, length + 7)
    np.testing.assert_array_equal(longer[:, :length], rows)


def test_lone_surrogates_are_tokens_too() -> None:
    assert token_ids(["\ud800"], 10, 2)[0, 0] > 0


def test_ids_are_the_same_in_every_process() -> None:
    code = "from fastmeta.data import token_ids; print(token_ids(['cats, dogs'], 99, 9).tolist())"
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert results == {f"{token_ids(['cats, dogs'], 99, 9).tolist()}\n"}


@pytest.mark.parametrize(("vocabulary", "length"), [(1, 5), (5, 0)])
def test_sizes_are_checked(vocabulary: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"got {vocabulary} and {length}"):
        token_ids(["a"], vocabulary, length)
