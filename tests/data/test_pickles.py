from __future__ import annotations

import functools
import io
import operator
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from python2 import array_code

from fastmeta.data import DataError
from fastmeta.data.pickles import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

words = st.text(max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
leaves |= st.binary(min_size=1, max_size=5)
containers = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(words, inner, max_size=4)
    ),
    max_leaves=10,
)
numbers = hnp.arrays(
    st.sampled_from(["u1", "i2", ">i4", "<i8", "f4", ">f8", "bool"]),
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
)


def read(content: bytes) -> dict[str, Any]:
    return read_pickle(io.BytesIO(content), "a.pkl", "Get it again.")


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(words, containers, max_size=4), st.sampled_from(PROTOCOLS))
def test_plain_containers_are_read(content: dict[str, Any], protocol: int) -> None:
    assert read(pickle.dumps(content, protocol)) == content


@settings(deadline=None)
@given(numbers, st.sampled_from("CF"), st.sampled_from(PROTOCOLS))
def test_arrays_are_read(array: np.ndarray, order: str, protocol: int) -> None:
    array = np.asarray(array, order=order)
    found = read(pickle.dumps({"a": array, "items": list(array.flat)}, protocol))
    assert type(found["a"]) is np.ndarray
    assert found["a"].dtype.str[1:] == array.dtype.str[1:]
    np.testing.assert_array_equal(found["a"], array)
    assert np.array_equal(found["items"], array.flatten(), equal_nan=array.dtype.kind == "f")


@settings(deadline=None)
@given(numbers)
def test_python_2_pickles_are_read(array: np.ndarray) -> None:
    content = python2.dumps({"image_data": array, "class_dict": {"n01": [0, 1, 2]}})
    oracle = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(oracle["image_data"], array)  # the test's writer is right
    found = read(content)
    np.testing.assert_array_equal(found["image_data"], array)
    assert found["class_dict"] == {b"n01": [0, 1, 2]}


class Call:
    """Pickled, it is the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"\w+\.system"),
        (os.mkdir, r"\w+\.mkdir"),
        (eval, r"\w+\.eval"),
        (getattr, r"\w+\.getattr"),
        (subprocess.Popen, r"\w+\.Popen"),
        (functools.partial, r"functools\.partial"),
        (operator.attrgetter, r"operator\.attrgetter"),
        (np.frombuffer, r"numpy\..*frombuffer"),
        (np.load, r"numpy.*\.load"),
        (bytearray, r"\w+\.bytearray"),
    ],
)
def test_a_hostile_pickle_is_refused_by_name(
    tmp_path: Path, function: Callable[..., Any], name: str, protocol: int
) -> None:
    trap = tmp_path / "sprung"
    content = pickle.dumps({"image_data": Call(function, str(trap))}, protocol)
    with pytest.raises(DataError, match=rf"a\.pkl: .*asks for {name}\. Nothing of it was run\."):
        read(content)
    assert not trap.exists()


def test_what_is_read_cannot_change_the_reader() -> None:
    good = pickle.dumps({"a": np.arange(3, dtype=np.uint8)}, 2)
    for name in (b"numpy\ndtype", b"_codecs\nencode", b"numpy.core.multiarray\n_reconstruct"):
        for state in (b"}U\x09_functionNs", b"N}U\x09_functionNs\x86", b"N}U\x08__init__Ns\x86"):
            with pytest.raises(DataError, match="broken"):
                read(b"\x80\x02}U\x01ac" + name + b"\n" + state + b"bs.")
    assert read(good)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (array_code("u1", (3,), b"ab"), r"contents do not fit shape \(3,\)"),
        (array_code("u1", (2**31 - 1, 2**31 - 1), b"ab"), "do not fit"),
        (array_code("u1", (-1, -2), b"ab"), "do not fit"),
        (array_code("i8", (1,), b"ab"), "do not fit"),
        (array_code("O8", (1,), b"12345678"), "dtype 'O8' is not of numbers"),
        (array_code("V2", (1,), b"ab"), "dtype 'V2'"),
        (array_code("u1", (2,), b"ab", order="u1,u1"), "dtype has parts"),
        (array_code("u1", (2,), [1, 2]), "do not fit"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00base64\x86R", "bytes encoded by"),
        (b"cnumpy\nndarray\nK\x05\x85R", "not callable"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(code: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(b"\x80\x02}U\x01a" + code + b"s.")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_refused(protocol: int) -> None:
    content = pickle.dumps({"image_data": np.zeros((2, 3), np.uint8), "rows": [1, 2]}, protocol)
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"a\.pkl: expected a whole pickle.*Get it again"):
            read(content[:length])


@pytest.mark.parametrize("content", [[1], None, np.zeros(3)])
def test_only_dictionaries_are_taken(content: object) -> None:
    with pytest.raises(DataError, match="expected a dictionary"):
        read(pickle.dumps(content))
