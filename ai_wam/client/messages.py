"""Messages between robots and a served policy: msgpack with NumPy arrays, in the layout of openpi's client.

An array is a map of `__ndarray__`, `data`, `dtype` and `shape` (binary keys), a NumPy number one of
`__npgeneric__`, `data` and `dtype`. Unpacking makes numbers, texts, lists, maps and arrays of numbers only:
nothing is unpickled, no other type is looked up, and an array's shape is compared with its bytes before there
is an array.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from ai_wam.errors import InvalidType, InvalidValue

_TYPES = {
    code: np.dtype(code)
    for code in (
        *("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"),
        *("u1", "i1", "b1"),
    )
}
_MOST_DIMENSIONS = 8
_MOST_ITEMS = 65_536  # of all lists and maps of a message together
_LONGEST_TEXT = 65_536  # bytes
_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_NUMBER = {b"__npgeneric__", b"data", b"dtype"}


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message.

    Raises:
        TypeError: a value that is no number, text, list, map or array of numbers.
    """
    packed: bytes = msgpack.packb(dict(message), default=_packable)
    return packed


def unpack(data: bytes, at: str) -> dict[str, Any]:
    """A message; its arrays are read-only views of `data`.

    Args:
        data: the whole message.
        at: where it came from, for the error.

    Raises:
        ValueError: bytes of another layout, or a type that is not among those above.
    """
    try:
        message = msgpack.unpackb(
            data,
            object_hook=_counting(_unpacked),
            list_hook=_counting(lambda items: items),
            ext_hook=_refuse_extension,
            max_str_len=_LONGEST_TEXT,
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_ext_len=0,
        )
    except InvalidValue as error:
        raise InvalidValue(f"{at}: {error}") from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        why = " ".join(str(error).split()) or f"it cannot be read ({type(error).__name__})"
        raise InvalidValue(f"{at} is no msgpack message of numbers, texts and arrays: {why}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        found = type(message).__name__
        raise InvalidValue(f"{at} holds a {found}, expected a map with texts as keys; see docs/serve.md")
    return message


def _packable(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise InvalidType(
            f"a message holds a {type(value).__name__}; it takes numbers, texts and arrays only"
        )
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in _TYPES:
        raise InvalidType(f"a message holds values of type {value.dtype}; it takes {', '.join(_TYPES)} only")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}
    little = value.astype(dtype, copy=False)
    return {b"__ndarray__": True, b"data": little.tobytes(), b"dtype": dtype.str, b"shape": value.shape}


def _counting(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook, as long as what it got has few items in all: nested lists take far more memory than bytes."""
    seen = 0

    def counted(items: Any) -> Any:
        nonlocal seen
        seen += len(items)
        if seen > _MOST_ITEMS:
            raise InvalidValue(
                f"it has more than {_MOST_ITEMS} list items; send numbers as arrays, whose bytes are one item"
            )
        return hook(items)

    return counted


def _unpacked(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return _array(found)
    return _number(found) if b"__npgeneric__" in found else found


def _array(found: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _typed(found, _ARRAY), found[b"data"], found[b"shape"]
    if not isinstance(data, bytes):
        raise InvalidValue(f"an array's data is a {type(data).__name__}, expected bytes")
    sides = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
    if not sides or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise InvalidValue(f"an array's shape is {str(shape)[:80]}, expected up to {_MOST_DIMENSIONS} sizes")
    if (announced := math.prod(shape) * dtype.itemsize) != len(data):
        raise InvalidValue(
            f"an array announces {tuple(shape)} of {dtype}, {announced} bytes, and has {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _number(found: dict[Any, Any]) -> Any:
    dtype, data = _typed(found, _NUMBER), found[b"data"]
    if type(data) not in (bool, int, float):
        raise InvalidValue(f"a number's data is a {type(data).__name__}, expected a number")
    return dtype.type(data).item()


def _typed(found: dict[Any, Any], keys: set[bytes]) -> "np.dtype[Any]":
    """The type of an array or a number, which has to have exactly these keys."""
    if set(found) != keys:
        raise InvalidValue(f"an array or a number has the keys {sorted(map(str, found))[:8]}")
    code = found[b"dtype"]
    if not isinstance(code, str) or code not in _TYPES:
        raise InvalidValue(
            f"an array or a number has the type {str(code)[:40]!r}, expected one of {[*_TYPES]}"
        )
    return _TYPES[code]


def _refuse_extension(code: int, data: bytes) -> Any:
    raise InvalidValue(f"it holds a value of msgpack's extension type {code}; it takes no extensions")
