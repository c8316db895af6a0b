"""Pickles of arrays and plain containers, read without running anything they ask for."""

from __future__ import annotations

import math
import pickle
import re
import reprlib
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from fastmeta.data._io.errors import data_error


def load_pickle(file: IO[bytes], where: Path | str, fix: str, also: Mapping[str, Any] = {}) -> Any:
    """What a pickle of Python 2 or 3, of any protocol, holds.

    A pickle is a program: it may call any function by name, and so ``pickle.load`` of a foreign
    file can do anything. Here the few names that arrays of numbers need stand for functions of
    this module, and any other name ends the reading.

    Args:
        file: open at the start of the pickle.
        where: its name, for messages.
        fix: how to get a good one.
        also: what stands for further names, by ``"module.name"`` as in the pickle: functions and
            classes that are safe to call with anything, or ``None`` for a name that is only given
            to others. Classes must have ``__setstate__``, or the pickle could change them.

    Returns:
        ``None``, a number, a text, an array of numbers, something of ``also``, or a list, tuple or
        dictionary of these. Texts of Python 2 are bytes (see :func:`text`), arrays are of a
        subclass of ``numpy.ndarray``.

    Raises:
        DataError: if the pickle asks for another name, or is truncated or corrupt.
    """
    try:
        return _Unpickler(file, also).load()
    except _RefusedError as error:
        raise data_error(
            where,
            expected="a pickle of arrays and plain containers",
            found=f"one that asks for {error}",
            fix=f"Nothing of it was run. {fix}",
        ) from error
    except Exception as error:  # a broken pickle may raise anything, says its documentation
        raise data_error(
            where,
            expected="a whole pickle",
            found=f"a broken or truncated one ({type(error).__name__}: {error})",
            fix=fix,
        ) from error


def load_dict(file: IO[bytes], where: Path | str, fix: str) -> dict[str, Any]:
    """As :func:`load_pickle`, of a dictionary; its keys become texts, its arrays plain ones.

    Raises:
        DataError: also if the pickle holds something else.
    """
    content = load_pickle(file, where, fix)
    if not isinstance(content, dict):
        raise data_error(
            where, expected="a dictionary", found=f"a {type(content).__name__}", fix=fix
        )
    return {
        text(key): value.view(np.ndarray) if isinstance(value, _Array) else value
        for key, value in content.items()
    }


def text(value: object) -> str:
    """A text of either Python."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    # A few bytes make a tuple of tuples that would fill the memory if it were written out.
    return value if isinstance(value, str) else reprlib.repr(value)


class _RefusedError(pickle.UnpicklingError):
    """The message is the name that was asked for."""


# Written in Python, for which a number in the pickle is no reason to take memory: the other one
# makes room for as many values to remember, or bytes to read, as five bytes can ask for.
_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, file: IO[bytes], also: Mapping[str, Any]) -> None:
        # The texts of Python 2, and with them the contents of its arrays, as bytes.
        super().__init__(file, encoding="bytes")
        self._file_readline = partial(_line, file)
        self._names = {**_NAMES, **also}

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        # numpy 2 moved what it had in numpy.core.
        known = wanted.replace("numpy._core.", "numpy.core.")
        if known not in self._names:
            raise _RefusedError(wanted)
        found = self._names[known]
        return found if isinstance(found, type) else _Callable(found)

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _line(file: IO[bytes]) -> bytes:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError("it ends within a line")
    return line


class _Dtype:
    """A data type of numbers, instead of ``numpy.dtype``."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, align: object = None, copy: object = None) -> None:
        self._code, self._order = text(code), "|"
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", self._code):
            raise pickle.UnpicklingError(f"dtype {self._code!r} is not of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *parts = state[1:5]
        if text(order) not in ("|", "<", ">", "=") or parts != [None] * 3:
            raise pickle.UnpicklingError("dtype has parts")
        self._order = text(order)

    def fitting(self, shape: object, raw: object) -> np.dtype[Any]:
        """The data type for numpy, which takes it on trust that ``raw`` has an array's size."""
        dtype = np.dtype(self._order + self._code)
        if (
            not isinstance(shape, tuple)
            or not all(isinstance(side, int) and side >= 0 for side in shape)
            or not isinstance(raw, bytes | bytearray)
            or len(raw) != math.prod(shape) * dtype.itemsize
        ):
            raise pickle.UnpicklingError(f"contents do not fit shape {reprlib.repr(shape)}")
        return dtype


class _Array(np.ndarray[Any, Any]):
    """An empty array, which the next thing in the pickle fills."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        trusted: Any = (1, shape, dtype.fitting(shape, raw), bool(fortran), raw)
        super().__setstate__(trusted)


class _Callable:
    """What a function's name stands for: can be called, but not changed by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _reconstruct(*_: object) -> object:
    return _Array(0)


def _frombuffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> object:
    flat = np.frombuffer(raw, dtype.fitting(shape, raw))
    return flat.reshape(shape, order=order).view(_Array)


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return np.frombuffer(raw, dtype.fitting((), raw)).item()


def _encode(value: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded by {encoding!r}")
    return value.encode("latin1")


_NAMES: Mapping[str, Any] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy.ndarray": None,  # only ever given to _reconstruct
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",  # as Python 3 writes no bytes for Python 2
}
