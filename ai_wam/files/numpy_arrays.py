"""NumPy's .npy and .npz files without pickles; wrong sizes are refused before memory is allocated.

Arrays are numbers; text is read where a caller asks for it.
"""

import io
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from ai_wam.errors import InvalidValue

_BEFORE = 10  # bytes before a header: magic, version, length
_LONGEST = 256  # bytes of a header as NumPy writes it
_MOST = 2**30  # bytes of all arrays of one .npz, unless the caller knows better
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as NumPy writes; others inflate without a limit
# The header that NumPy writes for an array of numbers, read without Python's parser: a third of the time, and
# that of Python 3.11 fails now and then ("AST constructor recursion depth mismatch").
_PLAIN = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<type>[<|](b1|[iu][1248]|f[248]))', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(\d{1,9},( \d{1,9},)*( \d{1,9})?)?)\), \} *\n",
    re.DOTALL,
)
_UNREADABLE = (
    ValueError, LookupError, SyntaxError, EOFError, OSError, ArithmeticError, RuntimeError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npy(data: bytes, at: str) -> np.ndarray:
    """The array of a .npy file.

    Args:
        data: the whole file.
        at: where it was read, for the error.

    Raises:
        ValueError: no such file, or one that holds Python objects, text, or fewer bytes than it announces.
    """
    try:
        return _array(data)
    except _UNREADABLE as error:
        raise InvalidValue(f"{at} is no .npy file of numbers: {_why(error)}") from error


def read_npz(
    data: bytes,
    at: str,
    names: Collection[str] | None = None,
    most: int = _MOST,
    text: bool = False,
) -> dict[str, np.ndarray]:
    """Arrays of a .npz file by name.

    Args:
        data: the whole file.
        at: where it was read, for the error.
        names: the arrays wanted; all if left out.
        most: bytes that the wanted arrays may take together with their headers.
        text: whether arrays of text are read, too.

    Raises:
        ValueError: no such file, a wanted array that is missing, is no array of numbers or has fewer bytes
            than it announces, or arrays that would take more than `most` bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(archive)
            wanted = list(entries) if names is None else list(names)
            if missing := [name for name in wanted if name not in entries]:
                raise InvalidValue(f"it lacks the arrays {sorted(missing)}")
            if (total := sum(entries[name].file_size for name in wanted)) > most:
                raise InvalidValue(f"it announces {total} bytes of arrays, at most {most} can be right")
            return {name: _member(archive, entries[name], name, text) for name in wanted}
    except _UNREADABLE as error:
        raise InvalidValue(f"{at} is no .npz file of numbers: {_why(error)}") from error


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found = archive.infolist()
    entries = {info.filename.removesuffix(".npy"): info for info in found}
    if len(entries) < len(found):
        raise InvalidValue("it holds two arrays of one name")
    return entries


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, text: bool) -> np.ndarray:
    try:
        if info.compress_type not in _COMPRESSION:
            raise InvalidValue(f"it is compressed by method {info.compress_type}, expected none or deflate")
        with archive.open(info) as stream:  # reading without a size inflates whatever is there
            return _array(stream.read(info.file_size), text)
    except _UNREADABLE as error:
        raise InvalidValue(f"array {name!r}: {_why(error)}") from error


def read_header(stream: io.BytesIO, text: bool = False) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of a .npy file of numbers; the stream is then at its data.

    Raises:
        ValueError: no such file, or values that are no numbers (or text, if that is asked for).
    """
    if (plain := _plain_header(stream)) is not None:
        return plain
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise InvalidValue(f"it is of the format's version {version}, expected one of {sorted(_HEADERS)}")
        shape, fortran, dtype = _HEADERS[version](stream)
    except _UNREADABLE as error:
        raise InvalidValue(_why(error)) from error
    if dtype.kind not in ("biufU" if text else "biuf"):
        raise InvalidValue(f"it holds values of type {dtype}, expected numbers; save it without objects")
    if min(shape, default=0) < 0:
        raise InvalidValue(f"it announces the shape {shape}")
    return shape, fortran, dtype


def _plain_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """The same where the header is as NumPy writes it; None, and the stream where it was, elsewhere."""
    begin = stream.tell()
    found = _PLAIN.match(stream.read(_LONGEST))
    if found is None or found.end() != _BEFORE + int.from_bytes(found["length"], "little"):
        stream.seek(begin)
        return None
    stream.seek(begin + found.end())
    shape = tuple(int(side) for side in found["shape"].replace(b" ", b"").split(b",") if side)
    return shape, found["fortran"] == b"True", np.dtype(found["type"].decode())


def _array(data: bytes, text: bool = False) -> np.ndarray:
    stream = io.BytesIO(data)
    shape, fortran, dtype = read_header(stream, text)
    there, announced = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if there != announced:
        raise InvalidValue(f"it announces {shape} of {dtype}, {announced} bytes, and has {there}")
    numbers = np.frombuffer(bytearray(stream.read()), dtype, count=math.prod(shape))
    return numbers.reshape(shape, order="F" if fortran else "C")


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
