from __future__ import annotations

import functools
import io
import operator
import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastmeta.data import DataError
from fastmeta.data._io.pickles import load_dict, load_pickle
from tests.helpers.python2_pickles import Code, array, built, called, dumps, named, unicode

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DTYPE = named("numpy", "dtype")

words = st.text(max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
leaves |= st.binary(max_size=5)
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
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes(),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def load(content: bytes, also: Mapping[str, Any] = {}) -> Any:
    return load_pickle(io.BytesIO(content), "a.pkl", "Get it again.", also)


@given(containers, st.sampled_from(PROTOCOLS))
def test_plain_containers_are_read(content: object, protocol: int) -> None:
    assert load(pickle.dumps(content, protocol)) == content


@given(numbers, st.sampled_from("CF"), st.sampled_from(PROTOCOLS))
def test_arrays_are_read(values: np.ndarray, order: str, protocol: int) -> None:
    values = np.asarray(values, order=order)
    found, items = load(pickle.dumps((values, list(values.flat)), protocol))
    assert found.dtype.str[1:] == values.dtype.str[1:]
    np.testing.assert_array_equal(found, values)
    assert np.array_equal(items, values.flatten(), equal_nan=values.dtype.kind == "f")


@given(numbers)
def test_python_2_pickles_are_read(values: np.ndarray) -> None:
    content = dumps({"image_data": values, "class_dict": {"caf\xe9": [0, 1, None]}})
    oracle = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(oracle["image_data"], values)  # the test's writer is right
    found = load(content)
    np.testing.assert_array_equal(found[b"image_data"], values)
    assert found[b"class_dict"] == {b"caf\xe9": [0, 1, None]}


def test_keys_of_dictionaries_are_texts_and_arrays_are_plain() -> None:
    content = {"caf\xe9": np.arange(3), "list": [1]}
    for pickled in (dumps(content), *(pickle.dumps(content, protocol) for protocol in PROTOCOLS)):
        found = load_dict(io.BytesIO(pickled), "a.pkl", "")
        assert list(found) == list(content)
        assert type(found["caf\xe9"]) is np.ndarray


@pytest.mark.parametrize("content", [[1], None, np.zeros(3)])
def test_only_dictionaries_are_taken(content: object) -> None:
    with pytest.raises(DataError, match=r"a\.pkl: expected a dictionary; .* Get it again"):
        load_dict(io.BytesIO(pickle.dumps(content)), "a.pkl", "Get it again.")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_refused(protocol: int) -> None:
    content = pickle.dumps({"image_data": np.zeros((2, 3), np.uint8), "rows": [1, 2]}, protocol)
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"a\.pkl: expected a complete pickle.*Get it again"):
            load(content[:length])


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Call(os.system, "touch sprung"), r"\w+\.system"),
        (Call(os.mkdir, "sprung"), r"\w+\.mkdir"),
        (Call(open, "sprung", "w"), r"\w+\.open"),
        (Call(eval, "open('sprung', 'w')"), r"\w+\.eval"),
        (Call(exec, "open('sprung', 'w')"), r"\w+\.exec"),
        (Call(getattr, {}, "clear"), r"\w+\.getattr"),
        (Call(subprocess.Popen, ["touch", "sprung"]), r"\w+\.Popen"),
        (Call(functools.partial, print), r"functools\.partial"),
        (Call(operator.attrgetter, "a"), r"operator\.attrgetter"),
        (Call(np.frombuffer, "a"), r"numpy\..*frombuffer"),
        (Call(np.load, "a"), r"numpy.*\.load"),
        (Call(np.fromfile, "a"), r"numpy.*\.fromfile"),
        (Call(bytearray, 5), r"\w+\.bytearray"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
    ],
)
def test_a_malicious_pickle_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps([1, {"image_data": (value,)}], protocol)
    with pytest.raises(
        DataError, match=rf"a\.pkl: .*refers to {name}\. None of its code was run\."
    ):
        load(content)
    assert not list(tmp_path.iterdir())


ATTRIBUTES = ("x", "__init__", "__call__", "__setstate__", "_function")
STATES = [
    state
    for attributes in ({unicode(name): None} for name in ATTRIBUTES)
    for state in (attributes, (None, attributes))  # for __dict__, for setattr
]


class Kept:
    """A class that a caller allows."""

    def __setstate__(self, state: object) -> None:
        self.state = state


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
        ("__builtin__", "bytes"),
        ("also", "function"),
        ("also", "list"),
        ("also", "Kept"),
    ],
)
def test_a_pickle_cannot_change_shared_objects(module: str, name: str, state: object) -> None:
    also = {"also.function": lambda: None, "also.list": list, "also.Kept": Kept}
    before = {value: dict(vars(value)) for value in also.values()}
    with pytest.raises(DataError, match="corrupt"):
        load(dumps(built(named(module, name), state)), also)
    assert {value: dict(vars(value)) for value in also.values()} == before
    assert load(pickle.dumps(np.arange(3), 2)).tolist() == [0, 1, 2]


def test_shared_dtypes_are_unchanged() -> None:
    """A pickle sets the state of dtypes it created, never of shared ones."""
    load(dumps(built(called(DTYPE, "f4"), (3, ">", None, None, None, -1, -1, 0))))
    assert np.dtype("f4").isnative
    assert np.float32(1).tobytes() == np.array(1, "<f4").tobytes()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (array("u1", (3,), b"ab"), r"contents do not match shape \(3,\)"),
        (array("u1", (2**31 - 1, 2**31 - 1), b"ab"), "do not match"),
        (array("u1", (-1, -2), b"ab"), "do not match"),
        (array("i8", (1,), b"ab"), "do not match"),
        (array("u1", (2,), [1, 2]), "do not match"),
        (array("O8", (1,), b"12345678"), "dtype 'O8' is not numeric"),
        (array("V2", (1,), b"ab"), "dtype 'V2'"),
        (array("u1", (2,), b"ab", order="u1,u1"), "dtype has fields"),
        (built(called(DTYPE, "u1"), (3, "|", None, ("a",), {}, 2, 1, 0)), "dtype has fields"),
        (called(DTYPE, {"names": ()}), "is not numeric"),
        (called(named("numpy", "ndarray"), (4,)), "not callable"),  # memory nobody wrote
        (called(named("_codecs", "encode"), unicode("a"), unicode("base64")), "bytes encoded by"),
        (Code(b"K\x01Q"), "persistent"),
    ],
)
def test_malicious_arrays_are_refused(code: Code, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(dumps([code]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_are_refused(protocol: int) -> None:
    with pytest.raises(DataError, match="dtype 'O8' is not numeric"):
        load(pickle.dumps(np.array([None]), protocol))
