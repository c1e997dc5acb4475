"""Messages to a served policy: the layout of openpi's client, and one sentence for what does not fit."""

import re

import msgpack
import numpy as np
import pytest
from serving_thread import CLIP, PROMPT, STATE, frame, message, served, state, trained_policy
from websockets.sync.client import connect

from ai_wam.client import Connection, RequestRefused
from ai_wam.client.messages import pack, unpack
from ai_wam.errors import InvalidValue
from ai_wam.types import Observation

OPENPI = "pip install --no-deps openpi-client: it pins NumPy 1, which it does not need"


@pytest.fixture(scope="module")
def server():
    with served(trained_policy()) as found:
        yield found


def test_openpi_packs_and_reads_the_same_bytes():
    genuine = pytest.importorskip("openpi_client.msgpack_numpy", reason=OPENPI)
    arrays = [np.arange(6, dtype=kind).reshape(2, 3) for kind in ("u1", "i8", "f4", "f8", "f2")]
    sent = {"arrays": [*arrays, arrays[0] > 2], "number": np.float32(0.1), "text": "é", "map": {"a": None}}
    assert pack(sent) == genuine.packb(sent)
    for read in (unpack(genuine.packb(sent), "it"), genuine.unpackb(pack(sent))):
        np.testing.assert_equal(read, sent)


def changed(**parts):
    """Makes a message; nothing is drawn while tests are collected, for processes are forked then."""
    return lambda: message() | parts


NAN = STATE.copy()
NAN[0] = np.nan
SHEARED = np.eye(4)
SHEARED[0, 1] = 0.5


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (changed(images={"front": np.zeros((9, 9), np.uint8)}), r"'front' is an array \[9, 9\] of uint8"),
        (changed(images={"front": np.zeros((48, 64, 3))}), "of float64; expected RGB uint8"),
        (changed(images={}), "images is empty; send at least one"),
        (changed(cameras={}), "image 'front' comes without a camera"),
        (changed(cameras={"up": {}}), "cameras names the view 'up'"),
        (changed(cameras={"front": {"intrinsics": np.eye(3)}}), r"has the keys \['intrinsics'\], expected"),
        (
            changed(cameras={"front": {"intrinsics": np.eye(3), "world_from_camera": SHEARED}}),
            "world_from_camera is no rigid motion",
        ),
        (
            changed(cameras={"front": {"intrinsics": np.eye(3) * np.nan, "world_from_camera": np.eye(4)}}),
            "intrinsics has 9 of 9 numbers that are NaN",
        ),
        (
            changed(cameras={"front": {"intrinsics": np.zeros((3, 3)), "world_from_camera": np.eye(4)}}),
            "is no matrix K",
        ),
        (changed(state=STATE[:7]), r"state: .* is an array \[7\] of float64; expected numbers \[8\]"),
        (changed(state=None), "state: .* is missing"),
        (changed(state=NAN), "state: .* has 1 of 8 numbers that are NaN or infinite"),
        (changed(state=np.ones(8)), "its quaternion .* has length 2, expected 1"),
        (changed(state=np.r_[1000 * STATE[:3], STATE[3:]]), "far outside of every picture .* in metres"),
        (changed(state=np.r_[STATE[:7], 85]), r"openness must lie between 0 .* got 85"),
        (changed(seconds=-1.0), "seconds is -1; give the time"),
        (changed(images={"front": np.zeros((32, 32, 3), np.uint8)}), "'front': the principal point of K"),
        (changed(prompt=3), "prompt is of type int; expected one text"),
        (changed(prompt=["go"]), "prompt is of type list; expected one text"),
        (changed(seconds="now"), "seconds is of type str"),
        (changed(seconds=np.nan), "seconds has 1 of 1 numbers that are NaN or .*; send finite numbers$"),
        (changed(committed=np.zeros((4, 8))), "committed: its quaternion"),
        (changed(instruction="go"), r"unknown keys \['instruction'\]; it may have \['cameras', 'committed'"),
        (lambda: {"observation": {}}, "observation lacks"),
        (lambda: {"reset": []}, "reset names no episode"),
        (lambda: {"obs": 1}, r"has the keys \['obs'\]; it needs 'images'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_one_sentence(server, sent, said):
    with Connection(server.address) as asking, pytest.raises(RequestRefused, match=said) as refused:
        asking.ask(sent())
    assert "\n" not in str(refused.value)


def test_lists_of_numbers_are_arrays_too(server):
    with Connection(server.address) as asking:
        answer = asking.ask(changed(state=state().tolist(), episode="one")())
    expected = trained_policy().predict_action(Observation.from_frames([frame()], [PROMPT], ["one"], CLIP))
    np.testing.assert_array_equal(answer["actions"], expected.actions[0])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xc1", "is no msgpack message"),
        (b"", "is no msgpack message"),
        (pack({"images": {}})[:-1], "is no msgpack message"),
        (msgpack.packb([1]), "holds a list"),
        (msgpack.packb({"a": msgpack.ExtType(5, b"")}), "extension type 5"),
        ("text", "send msgpack in a binary frame"),
        (msgpack.packb({"a": [0] * 70_000}), "is no msgpack message .* max_array_len"),
        (msgpack.packb({"a": [[0] * 1000] * 70}), "more than 65536 list items"),
    ],
)
def test_malformed_messages_are_refused_and_the_session_goes_on(server, data, said):
    with connect(f"ws://{server.address}", compression=None) as raw:
        raw.recv()
        raw.send(data)
        answer = raw.recv()
        assert isinstance(answer, str)
        assert re.search(said, answer)
        raw.send(pack(message()))
        assert unpack(raw.recv(), "it")["actions"].shape == (8, 8)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ({b"dtype": "|O"}, r"the type '\|O'"),
        ({b"dtype": "V8"}, "the type 'V8'"),
        ({b"dtype": "<M8[s]"}, "the type"),
        ({b"dtype": b"<f8"}, "the type"),
        ({b"shape": [3]}, r"announces \(3,\) of float64, 24 bytes, and has 16"),
        ({b"shape": [2**62, 4]}, "shape is"),
        ({b"shape": [-2, -1]}, "shape is"),
        ({b"shape": 2}, "shape is 2"),
        ({b"data": "text"}, "data is a str"),
        ({b"more": 1}, "has the keys"),
    ],
)
def test_arrays_are_checked_before_they_are_made(array, said):
    whole = {b"__ndarray__": True, b"data": b"\0" * 16, b"dtype": "<f8", b"shape": [2]} | array
    with pytest.raises(InvalidValue, match=said):
        unpack(msgpack.packb({"a": whole}), "it")


def test_objects_are_not_packed():
    with pytest.raises(TypeError, match="type object; it takes"):
        pack({"a": np.array([None])})
    with pytest.raises(TypeError, match="holds a set"):
        pack({"a": set()})
