from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmeta.data.splits import draw_split

SIZES = st.tuples(*[st.integers(1, 20)] * 3)


@given(SIZES, st.integers(0, 2**64 - 1))
def test_splits_of_a_seed_are_disjoint_and_complete(sizes: tuple[int, int, int], seed: int) -> None:
    parts = [draw_split(split, sizes, seed) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == list(sizes)
    assert sorted(c for part in parts for c in part) == list(range(sum(sizes)))
    assert all(part == sorted(part) for part in parts)
    assert parts[1] == draw_split("val", sizes, seed)


def test_every_class_may_be_in_any_split() -> None:
    drawn = [draw_split("val", (3, 2, 2), seed) for seed in range(100)]
    assert {c for part in drawn for c in part} == set(range(7))


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'dev'"):
        draw_split("dev", (1, 1, 1), 0)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        draw_split("val", (1, 1, 1), 2**64)
