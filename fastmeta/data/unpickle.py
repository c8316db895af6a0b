"""Pickles of data, loaded without running what else may be in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastmeta.data.errors import DataError, data_error


def load_pickle(path: Path, *, allowed: Mapping[str, Any], mend: str) -> Any:
    """What the pickle ``path`` of Python 2 or 3 holds.

    A pickle is a program that calls what it names. This one may name nothing but ``allowed``, so
    that it can build nothing but that and Python's numbers, texts and containers.

    Args:
        path: the file.
        allowed: by ``"module.name"`` as written in the pickle, what stands for it, such as
            :data:`NUMPY_ARRAYS`: functions, built-in types and classes with ``__setstate__``, all
            of them safe to call with any arguments.
        mend: the last part of error messages.

    Raises:
        DataError: if the file is missing or broken, or names anything else.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, path, allowed, mend).load()
    except FileNotFoundError:
        raise data_error(path, expected="a pickle", found="no such file", mend=mend) from None
    except DataError:
        raise
    except Exception as error:  # a broken pickle raises anything
        raise data_error(
            path,
            expected="a pickle",
            found=f"a broken one ({type(error).__name__}: {error})",
            mend=mend,
        ) from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path, allowed: Mapping[str, Any], mend: str) -> None:
        # Arrays of Python 2 are texts to Python 3, and come through as Latin-1 only.
        super().__init__(file, encoding="latin1")
        self._path, self._allowed, self._mend = path, allowed, mend

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in self._allowed:
            raise data_error(
                self._path,
                expected=f"nothing but data, of {', '.join(sorted(self._allowed))}",
                found=f"{wanted}, which could run code",
                mend=self._mend,
            )
        found = self._allowed[wanted]
        # A pickle can set attributes of a function: of this one, which nobody else has.
        return found if isinstance(found, type) else lambda *arguments: found(*arguments)


def _empty_array(*_: object) -> NDArray[Any]:
    return np.empty(0)  # what comes next in the pickle sets its shape and content


def _number_type(code: str, *_: object) -> np.dtype[Any]:
    dtype = np.dtype(str(code))
    if dtype.kind not in "biuf":
        raise ValueError(f"arrays must be of numbers, not of {dtype}")
    copy: np.dtype[Any] = dtype.newbyteorder("=")  # what comes next may change it
    return copy


# Arrays of numbers. Nothing else of NumPy can be had, and the class itself cannot be called.
NUMPY_ARRAYS: Mapping[str, Any] = {
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.ndarray": None,
    "numpy.dtype": _number_type,
}
