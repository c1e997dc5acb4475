"""NumPy's files, compared with what NumPy itself reads."""

import io

import numpy as np
import pytest

from ai_wam.files.numpy_arrays import read_header, read_npy, read_npz

SHAPES = [(), (0,), (3,), (2, 3), (5, 0, 2), (1, 2, 3, 4)]
TYPES = ["<f4", "<f8", "<f2", "|u1", "|i1", "<i8", "<u2", "|b1", ">f4", ">i2"]


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [None, (2, 0)])
def test_arrays_are_those_that_numpy_reads(kind: str, order: str, version: tuple[int, int] | None) -> None:
    for shape in SHAPES:
        array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind), order=order)
        data = saved(array, version)
        expected = np.load(io.BytesIO(data))
        found = read_npy(data, "here")
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
        stream, theirs = io.BytesIO(data), io.BytesIO(data)
        header = read_header(stream)
        major = np.lib.format.read_magic(theirs)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        assert header == read[major](theirs)
        assert stream.tell() == theirs.tell()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 3)", b"(2 3) "),
        (b"(2, 3)", b"(-2,3)"),
        (b"'<f4'", b"'|O4'"),
        (b"'<f4'", b"'<f3'"),
        (b"'<f4'", b"'<f1'"),
        (b"'shape': (2, 3), }  ", b"'shape': (6), }     "),
        (b"False", b"None "),
        (b"\x93NUMPY", b"\x93NUMPI"),
        (b"\n", b"\n\n"),
        (b"v\x00{", b"u\x00{"),
        (b"(2, 3)", b"(2, 4)"),
        (b"(2, 3)", b"(6)   "),
    ],
)
def test_another_header_is_refused(old: bytes, new: bytes) -> None:
    data = saved(np.zeros((2, 3), np.float32))
    assert old in data
    with pytest.raises(ValueError, match=r"^here is no .npy file of numbers: "):
        read_npy(data.replace(old, new, 1), "here")


def test_named_arrays_are_those_that_numpy_reads() -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.eye(3), b=np.arange(4, dtype=np.float32))
    found = read_npz(stream.getvalue(), "here")
    assert {name: array.tolist() for name, array in found.items()} == {
        "a": np.eye(3).tolist(),
        "b": [0, 1, 2, 3],
    }
