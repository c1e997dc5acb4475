"""Pickles: harmless ones are read in every protocol; hostile ones call nothing and change nothing."""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from datamodules.reading.safe_pickle import Shell, load_pickle


class Camera(Shell):
    """A class that the caller names."""


SHELLS = {(Camera.__module__, "Camera"): Camera}

HARMLESS = {
    "numbers": [1, -(2**70), 1.5, 2 + 1j, True, None],
    "text": ["a", "ü\u2028"],
    "bytes": [b"", b"\x00\xff", bytearray(b"\xfe"), bytearray()],
    "containers": [(1, 2), {"a": [1]}, {1, 2}, frozenset({3}), OrderedDict(b=1, a=2), range(3)],
}
ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(3, dtype=">f4"),
    np.array([True, False]),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.zeros((0, 3)),
    np.zeros(()),
    np.array(["2020-01-01T00:00:01"], "M8[10ms]"),
    np.array([3], "m8"),
    np.array([{"a": 1}, None, "text"], dtype=object),
    np.array([(1, "a", [0, 1])], dtype=[("n", "<i4"), ("o", "O"), ("v", "f4", (2,))]),
    np.zeros(2, dtype={"names": ["x"], "formats": ["f8"], "offsets": [4], "itemsize": 16}),
    np.zeros(2, dtype=[("pair", "f4", (2, 2))]),
]
SCALARS = [np.float64(1.5), np.float32(2), np.bool_(True), np.int64(-1), np.str_("ab"), np.datetime64(7, "D")]


def load(path, data):
    (path / "x.pkl").write_bytes(data)
    return load_pickle(path / "x.pkl", SHELLS)


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_harmless_is_read(protocol, tmp_path):
    found = load(tmp_path, pickle.dumps(HARMLESS, protocol))
    assert found == HARMLESS
    assert [type(each) for each in found["containers"]] == [type(each) for each in HARMLESS["containers"]]
    camera = Camera()
    camera.pose, camera.name = np.eye(4), "front"
    shell = load(tmp_path, pickle.dumps([camera], protocol))[0]
    assert (type(shell), shell.name, shell.pose.tolist()) == (Camera, "front", np.eye(4).tolist())


@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
@pytest.mark.parametrize("protocol", [0, 2, 3])
def test_arrays_of_all_kinds_are_read(protocol, core, tmp_path):
    data = pickle.dumps(ARRAYS + SCALARS, protocol).replace(b"numpy._core", core)
    for found, true in zip(load(tmp_path, data), pickle.loads(data), strict=True):
        check_same(found, true)


@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_of_new_protocols_are_read(protocol, tmp_path):
    for array in ARRAYS + SCALARS:
        data = pickle.dumps(array, protocol)
        check_same(load(tmp_path, data), pickle.loads(data))


def check_same(found, true):
    assert found.dtype == true.dtype
    assert repr(np.asarray(found).tolist()) == repr(true.tolist())
    for protocol in (4, 5):  # as worker processes hand it over
        again = pickle.loads(pickle.dumps(found, protocol))
        assert type(again) is type(true)
        assert repr(again.tolist()) == repr(true.tolist())


class Calls:
    """An object that a pickle makes by a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def forged_type(flags, kind="V8"):
    """A structured type that holds an object and denies it."""
    state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, flags)
    return Calls(np.dtype, kind, False, True, state=state)


RECONSTRUCT = np.empty(0).__reduce__()[0]
POINTER = struct.pack("<Q", 0x4141414141414141)
POINTERS = [
    Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), forged_type(0), False, POINTER)),
    Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, POINTER)),
    Calls(np.ndarray, (1,), np.dtype("O"), POINTER),
    Calls(np.ndarray, (1,), "O", POINTER),
    Calls(np.float64().__reduce__()[0], forged_type(0), POINTER),
    Calls(np.arange(2.0).__reduce_ex__(5)[0], POINTER, np.dtype("O"), (1,), "C"),
    Calls(np.arange(2.0).__reduce_ex__(5)[0], POINTER, forged_type(0), (1,), "C"),
    Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1, -1), np.dtype("f8"), False, POINTER)),
    Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (9,), np.dtype("f8"), False, POINTER)),
]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("number", range(len(POINTERS)))
def test_no_object_is_made_of_bytes(number, protocol, tmp_path):
    with pytest.raises(ValueError, match=r"x\.pkl is no readable pickle"):
        load(tmp_path, pickle.dumps(POINTERS[number], protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch touched'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cpickle\nloads\n.",
        b"c_codecs\ndecode\n.",
        b"cbuiltins\nobject.__subclasses__\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"ctests\nanything\n.",
    ],
)
def test_globals_that_are_not_known_are_not_called(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"x\.pkl asks for the global"):
        load(tmp_path, data)
    assert not Path("touched").exists()


CLASS, CODECS = b"c" + Camera.__module__.encode() + b"\nCamera\n", b"c_codecs\nencode\n"


@pytest.mark.parametrize(
    "data",
    [
        CODECS + b"(Vx\nVzip\ntR.",  # any codec would be imported
        CODECS + b"(I1\ntR.",
        CLASS + b"(N(S'__init__'\n" + CODECS + b"dtb.",  # changes a class for later files
        CLASS + b"(S'pose'\nI1\ndb.",
        b"cnumpy\ndtype\n(N(S'made'\nI1\ndtb.",
        CODECS + b"(N(S'__self__'\nI1\ndtb.",
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"Pname\n.",  # a persistent name
        b"\x80\x02]q\x00(K\x01",  # cut off
    ],
)
def test_nothing_that_stays_is_changed(data, tmp_path):
    with pytest.raises(ValueError, match=r"x\.pkl is no readable pickle"):
        load(tmp_path, data)
    assert not hasattr(Camera, "pose")
    assert type(Camera()) is Camera
