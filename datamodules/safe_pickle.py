"""Pickles of foreign data sets without running what they name.

A pickle is a program: its globals are looked up and called. Here the look-up knows NumPy's arrays and scalars
and the classes that the caller names, which become empty shells that carry attributes; whatever else a file
asks for is an error before anything is called, and no foreign package needs to be installed.
"""

import io
import pickle
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ai_wam.errors import InvalidValue
from ai_wam.files import AnyPath

_Globals: TypeAlias = Mapping[tuple[str, str], Any]


class Shell:
    """An object of a foreign class: the attributes it was saved with, none of its methods."""


def _numpy_globals() -> dict[tuple[str, str], Any]:
    """What NumPy's own reduction names: the module is `numpy.core` in files of NumPy 1."""
    reconstruct = np.empty(0).__reduce__()[0]  # the functions have no public name
    scalar = np.float64().__reduce__()[0]
    found: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found |= {(core, "_reconstruct"): reconstruct, (core, "scalar"): scalar}
    return found


_NUMPY = _numpy_globals()


def load_pickle(path: AnyPath, shells: _Globals | None = None) -> Any:
    """The object in a pickle of plain values, NumPy arrays and known classes.

    Args:
        path: the file.
        shells: the stand-in for each further global, by module and name.

    Raises:
        ValueError: the file is missing, truncated, or asks for another global; the message names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read ({error}); copy the recording again") from error
    try:
        return _Restricted(io.BytesIO(data), {**_NUMPY, **(shells or {})}).load()
    except _UnknownGlobal as error:
        raise InvalidValue(
            f"{path} asks for the global {error}, which is unknown here and will not be called; expected "
            f"{', '.join(sorted(shell.__name__ for shell in (shells or {}).values())) or 'plain values'} and "
            "NumPy arrays. Save the data again without it, or do not trust the file."
        ) from error
    except Exception as error:  # a damaged pickle fails in whatever it happens to say
        raise InvalidValue(
            f"{path} is no readable pickle ({type(error).__name__}: {error}); copy the recording again"
        ) from error


class _UnknownGlobal(Exception):
    pass


class _Restricted(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, known: _Globals) -> None:
        super().__init__(stream, encoding="latin1")  # how NumPy reads what Python 2 wrote
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise _UnknownGlobal(f"{module}.{name}")
        return self._known[module, name]
