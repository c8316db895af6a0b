from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from python2_pickles import array, integer, many, named, pickled, table, text

from fastmeta.data import DataError
from fastmeta.data.unpickle import NUMPY_ARRAYS, load_pickle

NUMBERS = st.one_of(
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?"),
    arrays.boolean_dtypes(),
)
VALUES = arrays.arrays(NUMBERS, arrays.array_shapes(min_dims=0, min_side=0))


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles") / "a.pkl"


def load(path: Path, content: bytes, allowed: Any = NUMPY_ARRAYS) -> Any:
    path.write_bytes(content)
    return load_pickle(path, allowed=allowed, mend="Mend it.")


class Calls:
    """Unpickling calls ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@given(VALUES)
def test_arrays_of_both_pythons(path: Path, values: NDArray[Any]) -> None:
    contents = [pickle.dumps({"a": values}, protocol) for protocol in (3, 4)]
    contents.append(pickled(table({text(b"a"): array(values)})))
    for content in contents:
        found = load(path, content)["a"]
        assert found.dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, values)


def test_containers_numbers_and_texts(path: Path) -> None:
    value = {"a": [1, 2.5, None, True], ("b", b"c"): 10**30}
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        assert load(path, pickle.dumps(value, protocol), allowed={}) == value
    assert load(path, pickled(text(b"caf\xe9")), allowed={}) == "café"  # of Python 2


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        Calls(io.open, "touched", "w"),
        Calls(eval, "open('touched', 'w')"),
        Calls(getattr, {}, "clear"),
        Calls(np.fromfile, "touched"),
        [1, {"a": (Calls(exec, "open('touched', 'w')"),)}],
        OrderedDict(a=1),
        np.ndarray,
        np.float64(3),
        np.array([object()]),
    ],
    ids=str,
)
def test_what_could_run_code_is_refused(
    path: Path, value: Any, protocol: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    allowed = {} if value is np.ndarray else NUMPY_ARRAYS
    with pytest.raises(DataError, match=r"a\.pkl: expected .* Mend it\."):
        load(path, pickle.dumps(value, protocol), allowed)
    assert not (tmp_path / "touched").exists()


def test_the_refused_name_is_told(path: Path) -> None:
    with pytest.raises(DataError, match=r"found builtins\.eval, which could run code"):
        load(path, pickle.dumps(Calls(eval, "1"), 4))


NDARRAY = named("numpy", "ndarray")


@pytest.mark.parametrize(
    "content",
    [
        NDARRAY + many(many(integer(4))) + b"R",  # memory nobody wrote
        named("numpy", "dtype") + many(text(b"O")) + b"R",
        named("numpy", "dtype") + many(text(b"V8")) + b"R",
        named("numpy", "dtype") + many(table({text(b"names"): many()})) + b"R",
        array(np.zeros(4))[:-1].replace(integer(4), integer(5), 1) + b"b",
        b"N" + integer(1) + b"Q",
    ],
)
def test_hostile_arrays_are_refused(path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="a broken one"):
        load(path, pickled(content))


def test_shared_types_stay_as_they_are(path: Path) -> None:
    """A pickle sets the state of the dtype it made, never of one that others use."""
    none, minus = b"N", integer(-1)
    made = named("numpy", "dtype") + many(text(b"f4")) + b"R"
    state = many(integer(3), text(b">"), none, none, none, minus, minus, integer(0)) + b"b"
    load(path, pickled(made + state))
    assert np.dtype("f4").isnative
    assert np.float32(1).tobytes() == np.array(1, "<f4").tobytes()


@pytest.mark.parametrize(
    "state", [table({text(b"x"): b"N"}), many(b"N", table({text(b"x"): b"N"}))]
)
@pytest.mark.parametrize("wanted", NUMPY_ARRAYS)
def test_what_stands_for_a_name_stays_as_it_is(path: Path, wanted: str, state: bytes) -> None:
    module, _, name = wanted.rpartition(".")
    found = load(path, pickled(named(module, name) + state + b"b"))
    assert found.x is None
    assert not hasattr(NUMPY_ARRAYS[wanted], "x")
    with pytest.raises(DataError):
        load(path, pickled(named("a", "list") + state + b"b"), {"a.list": list})


@pytest.mark.parametrize("end", range(0, 100, 7))
def test_truncated_pickles_are_named(path: Path, end: int) -> None:
    whole = pickled(array(np.arange(6, dtype="<i4")))
    assert len(whole) > 100
    with pytest.raises(DataError, match="expected a pickle; found a broken one"):
        load(path, whole[:end])
    pickletools.genops(whole)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pkl: expected a pickle; found no such file"):
        load_pickle(tmp_path / "none.pkl", allowed={}, mend="Mend it.")
