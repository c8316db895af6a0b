"""Safe unpickling of arrays and plain containers: no code in the pickle is run."""

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


def load_pickle(file: IO[bytes], where: Path | str, fix: str, extra: Mapping[str, Any] = {}) -> Any:
    """Loads a pickle of Python 2 or 3, of any protocol, without running its code.

    A pickle is a program: it may call any function by name, so `pickle.load` of an untrusted file
    can run arbitrary code. Here the few names that numeric arrays need are mapped to functions of
    this module, and any other name is an error.

    Args:
        file: open at the start of the pickle.
        where: its name, for error messages.
        fix: how to get a valid file, for error messages.
        extra: replacements for further names, by `"module.name"` as in the pickle: functions and
            classes that are safe to call with any arguments, or `None` for a name that is only
            passed as an argument. Classes must define `__setstate__`, or the pickle could modify
            them.

    Returns:
        `None`, a number, a string, a numeric array, an instance of `extra`, or a list, tuple or
        dictionary of these. Strings of Python 2 are bytes (see `text`), arrays are of a
        subclass of `numpy.ndarray`.

    Raises:
        DataError: if the pickle refers to another name, or is truncated or corrupt.
    """
    try:
        return _Unpickler(file, extra).load()
    except _RefusedError as error:
        raise data_error(
            where,
            expected="a pickle of arrays and plain containers",
            found=f"one that refers to {error}",
            fix=f"None of its code was run. {fix}",
        ) from error
    except Exception as error:  # a corrupt pickle may raise any exception
        raise data_error(
            where,
            expected="a complete pickle",
            found=f"a corrupt or truncated one ({type(error).__name__}: {error})",
            fix=fix,
        ) from error


def load_dict(file: IO[bytes], where: Path | str, fix: str) -> dict[str, Any]:
    """`load_pickle` for a dictionary; its keys become strings, its arrays plain ones.

    Raises:
        DataError: also if the pickle contains another object.
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
    """A string pickled by Python 2 or 3."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    # A few bytes can encode nested tuples whose full repr would exhaust the memory.
    return value if isinstance(value, str) else reprlib.repr(value)


class _RefusedError(pickle.UnpicklingError):
    """A name that is not allowed, which is the message."""


# The pure-Python unpickler: the C one allocates as much memory as a size in the pickle claims, for
# its memo or for bytes to read, which a few bytes of the file can make arbitrarily large.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes], extra: Mapping[str, Any]) -> None:
        # Strings of Python 2, and with them the contents of its arrays, are loaded as bytes.
        super().__init__(file, encoding="bytes")
        self._file_readline = partial(_line, file)
        self._names = {**_NAMES, **extra}

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        # numpy 2 renamed numpy.core to numpy._core.
        key = full_name.replace("numpy._core.", "numpy.core.")
        if key not in self._names:
            raise _RefusedError(full_name)
        found = self._names[key]
        return found if isinstance(found, type) else _Callable(found)

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _line(file: IO[bytes]) -> bytes:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the file ends within a line")
    return line


class _Dtype:
    """A numeric data type, in place of `numpy.dtype`."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, align: object = None, copy: object = None) -> None:
        self._code, self._order = text(code), "|"
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", self._code):
            raise pickle.UnpicklingError(f"dtype {self._code!r} is not numeric")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *parts = state[1:5]
        if text(order) not in ("|", "<", ">", "=") or parts != [None] * 3:
            raise pickle.UnpicklingError("dtype has fields")
        self._order = text(order)

    def checked(self, shape: object, raw: object) -> np.dtype[Any]:
        """The `numpy.dtype`, if `raw` has the size of an array, which NumPy does not check."""
        dtype = np.dtype(self._order + self._code)
        if (
            not isinstance(shape, tuple)
            or not all(isinstance(side, int) and side >= 0 for side in shape)
            or not isinstance(raw, bytes | bytearray)
            or len(raw) != math.prod(shape) * dtype.itemsize
        ):
            raise pickle.UnpicklingError(f"contents do not match shape {reprlib.repr(shape)}")
        return dtype


class _Array(np.ndarray[Any, Any]):
    """An empty array, which the pickle fills by `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        checked: Any = (1, shape, dtype.checked(shape, raw), bool(fortran), raw)
        super().__setstate__(checked)


class _Callable:
    """A function that the pickle can call but not modify."""

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
    flat = np.frombuffer(raw, dtype.checked(shape, raw))
    return flat.reshape(shape, order=order).view(_Array)


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return np.frombuffer(raw, dtype.checked((), raw)).item()


def _encode(value: str, encoding: str) -> bytes:
    """Bytes as pickled by Python 3 with a protocol of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded by {encoding!r}")
    return value.encode("latin1")


_NAMES: Mapping[str, Any] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy.ndarray": None,  # only passed to _reconstruct
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",  # empty bytes, pickled by Python 3 for Python 2
}
