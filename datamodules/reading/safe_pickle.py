"""Reads pickles of other data sets without running the code that they name.

A pickle is a program: its globals are looked up and called. This reader allows plain containers, NumPy's
arrays and scalars, and the classes that the caller names, which become empty shells with attributes; any
other global in a file is an error before anything is called, and no other package needs to be installed.
NumPy's own classes are not looked up either: they take the layout of their memory from the pickle without a
check, so that a forged data type would turn bytes into addresses of objects. Data types are built anew from
their description.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath

_Globals: TypeAlias = Mapping[tuple[str, str], Any]
_SCALAR: Any = np.float64().__reduce__()[0]  # the function has no public name
_KIND = re.compile(r"[biufcmMSUVO][0-9]{0,9}")
_UNIT = re.compile(r"[A-Za-z]{1,2}")
_LATIN = ("latin1", "latin-1")  # how Python 3 writes bytes for Python 2


class _Fixed(type):
    """Metaclass of classes whose attributes cannot be set, which a pickle could do for the whole process."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"{cls.__name__} is not changed")


class Shell(metaclass=_Fixed):
    """An object of a foreign class: the attributes it was saved with, none of its methods."""


class _ArrayClass(metaclass=_Fixed):
    """Placeholder for `numpy.ndarray` in a pickle."""


class _Type(metaclass=_Fixed):
    """A data type as a pickle describes it."""

    def __init__(self, kind: str, align: bool = False, copy: bool = True) -> None:
        self._kind = kind
        self._state: tuple[Any, ...] = (3, "|", None, None, None, -1, -1, 0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def made(self) -> np.dtype[Any]:
        """The same type by NumPy's own rules; alignment and flags of the description are not used."""
        _, order, part, names, fields, size, _, _, *more = self._state
        if not isinstance(self._kind, str) or not _KIND.fullmatch(self._kind) or order not in tuple("<>|="):
            raise InvalidValue(f"a data type {self._kind!r} in the order {order!r}")
        if part is not None:
            return np.dtype((part[0].made(), part[1]))
        if names is not None:
            formats, offsets = [fields[name][0].made() for name in names], [fields[name][1] for name in names]
            parts: Any = {"names": list(names), "formats": formats, "offsets": offsets, "itemsize": size}
            return np.dtype(parts)
        kind = "O" if self._kind[0] == "O" else self._kind + _unit(more)
        return np.dtype(kind if order == "|" else order + kind)


def _unit(more: list[Any]) -> str:
    """The unit of a time, such as [10ms], out of (metadata, (unit, number, ...))."""
    if not more or more[0] is None:
        return ""
    unit, number = more[0][1][:2]
    unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
    if unit == "generic":
        return ""
    if not _UNIT.fullmatch(unit) or type(number) is not int:
        raise InvalidValue(f"a unit of time {unit!r} of {number!r}")
    return f"[{number}{unit}]"


class _Array(np.ndarray, metaclass=_Fixed):
    """An array that takes its content from a pickle, with a data type that was made anew."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *version, shape, kind, by_columns, data = state
        if not all(type(side) is int and side >= 0 for side in shape):
            raise InvalidValue(f"an array of shape {shape!r}")
        super().__setstate__((*version, tuple(shape), kind.made(), by_columns, data))

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


class _Calls:
    """The functions that a pickle may call; bound methods, since attributes of functions can be set."""

    __slots__ = ()

    def array(self, kind: Any, shape: Any, letter: Any) -> _Array:
        """An empty array, whose content follows."""
        return _Array((0,), np.int8)

    def scalar(self, kind: _Type, data: Any = None) -> Any:
        return _SCALAR(kind.made(), data)

    def buffer(self, data: Any, kind: _Type, shape: Any, order: str, axes: Any = None) -> np.ndarray:
        """An array of protocol 5."""
        if not isinstance(data, bytes | bytearray):
            raise InvalidValue(f"an array's buffer is a {type(data).__name__}")
        array = np.frombuffer(bytes(data), dtype=kind.made()).copy()
        if order == "K" and axes is not None:
            return array.reshape(shape).transpose(axes)
        return array.reshape(shape, order="F" if order == "F" else "C")

    def encoded(self, text: str, encoding: str = "latin1") -> bytes:
        """Bytes as protocols up to 2 write them."""
        if not isinstance(text, str) or encoding not in _LATIN:
            raise InvalidValue(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")

    def no_bytes(self) -> bytes:
        return b""

    def changeable(self, data: Any = b"", encoding: str = "latin1") -> bytearray:
        return bytearray(data if isinstance(data, bytes) else self.encoded(data, encoding))

    def shell(self, kind: Any, base: Any, state: Any) -> Any:
        """An object of a named class, as protocols 0 and 1 begin it."""
        if not (isinstance(kind, _Fixed) and issubclass(kind, Shell)):
            raise InvalidValue(f"an object of the class {kind!r}")
        return kind()


def _globals() -> dict[tuple[str, str], Any]:
    """By module and name, as Python 2 and 3 and NumPy 1 and 2 call them."""
    calls = _Calls()
    found: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _ArrayClass, ("numpy", "dtype"): _Type}
    for core in ("numpy.core", "numpy._core"):
        multiarray = f"{core}.multiarray"
        found |= {(multiarray, "_reconstruct"): calls.array, (multiarray, "scalar"): calls.scalar}
        found[f"{core}.numeric", "_frombuffer"] = calls.buffer
    for module in ("builtins", "__builtin__"):
        found |= {(module, kind.__name__): kind for kind in (set, frozenset, complex, range, object)}
        found |= {(module, "bytes"): calls.no_bytes, (module, "bytearray"): calls.changeable}
    found |= {("__builtin__", "xrange"): range, ("collections", "OrderedDict"): OrderedDict}
    found["_codecs", "encode"] = calls.encoded
    return found | {(module, "_reconstructor"): calls.shell for module in ("copy_reg", "copyreg")}


_KNOWN = _globals()


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
        return _Restricted(io.BytesIO(data), {**_KNOWN, **(shells or {})}).load()
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
