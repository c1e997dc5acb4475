"""Worlds in a process of their own: encoding, and everything that may happen to such a process."""

import ast
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.simulator import SimulatorCrash
from benchmarks.simulators.rlbench.client import EnvironmentServer, EnvironmentServerError
from benchmarks.simulators.rlbench.environment_server import server

ADAPTER = Path(__file__).parents[1] / "doubles" / "fragile_world.py"
FOLDER = Path(server.__file__).parent


@pytest.fixture
def world():
    world = EnvironmentServer(ADAPTER, {"start": 10})
    yield world
    world.close()


@pytest.fixture
def wire():
    near, far = socket.socketpair()
    yield near, far
    near.close()
    far.close()


def test_state_lives_on_between_calls_and_a_closed_world_begins_anew(world):
    assert not world.running
    assert [world.call("add", 10.0, number=n) for n in (1, 2)] == [11, 13]
    assert world.versions["numpy"] == np.__version__
    world.close()
    world.close()
    assert world.call("add", 10.0, number=1) == 11


def test_values_arrive_as_they_left(world):
    value = {"a": [1, 2.5, None, True, "ä"], "nan": math.nan, "scalar": np.float64(0.25), "tuple": (1, 2)}
    arrays = [
        np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::-1],
        np.zeros((0, 4)),
        np.array(1.5),
        np.array([True]),
    ]
    back = world.call("echo", 10.0, value={**value, "arrays": arrays})
    assert math.isnan(back.pop("nan"))
    for sent, got in zip(arrays, back.pop("arrays"), strict=True):
        np.testing.assert_array_equal(got, sent)
        assert (got.dtype, got.shape, got.flags.writeable) == (sent.dtype, sent.shape, True)
    assert back == {"a": [1, 2.5, None, True, "ä"], "scalar": 0.25, "tuple": [1, 2]}


def test_huge_array(world):
    huge = np.arange(30_000_000, dtype=np.float64)
    assert huge.nbytes == 240_000_000
    np.testing.assert_array_equal(world.call("echo", 120.0, value=huge), huge)


def test_far_side_has_neither_our_packages_nor_torch_and_no_folder_of_ours(world):
    seen = world.call("modules", 10.0)
    ours = {"torch", "ai_wam", "benchmarks", "backbones", "lightning", "pickle"}
    assert not ours & set(seen["packages"]) - {"pickle"}, seen["packages"]  # numpy itself imports pickle
    assert str(FOLDER) not in seen["path"]
    assert "" not in seen["path"]
    assert str(FOLDER.parent) not in seen["path"]


def test_prints_never_meet_the_messages(world):
    assert world.call("chatter", 10.0, lines=5000) == 5000
    assert world.call("add", 10.0, number=1) == 11
    assert "from C" in world.log()
    assert len(world.log()) < 4000


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [("exit", {"code": 7}, ["exit code 7", "giving up"]), ("segfault", {}, ["SIGSEGV", "fragile_world.py"])],
)
def test_death_is_reported_with_its_last_words_and_the_next_call_starts_anew(world, name, arguments, words):
    world.call("add", 10.0, number=5)
    with pytest.raises(SimulatorCrash) as caught:
        world.call(name, 10.0, **arguments)
    assert all(word in str(caught.value) for word in [name, *words])
    assert not world.running
    assert world.call("add", 10.0, number=1) == 11


def test_hang_is_killed_with_all_it_started(world):
    began = time.monotonic()
    with pytest.raises(SimulatorCrash, match=r"no answer within 1 s; killed.*printed:\n\d+") as caught:
        world.call("spawn_and_hang", 1.0)
    assert time.monotonic() - began < 10
    child = int(str(caught.value).split()[-1])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)
    assert world.call("add", 10.0, number=1) == 11


PARENT = """
import sys
from pathlib import Path
from benchmarks.simulators.rlbench.client import EnvironmentServer
world = EnvironmentServer(Path(sys.argv[1]), {})
world.call("add", 10.0, number=1)
print(world._live._process.pid, flush=True)
world.call(sys.argv[2], 60.0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_parent_while_a_call_hangs(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ADAPTER), "spawn_and_hang"], stdout=subprocess.PIPE, text=True
    )
    server = int(parent.stdout.readline())
    group = _within(10, lambda: [pid for pid in _group(server) if pid != server] and _group(server))
    assert len(group) == 2  # the server, and what the call started
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    _within(10, lambda: not any(map(_alive, group)))
    assert not any(map(_alive, group))


@pytest.mark.parametrize(
    "reply",
    [
        "[]",
        '{"arrays": [], "message": 5}',
        '{"arrays": [], "message": {}}',
        '{"arrays": [], "message": {"error": "no"}}',
        '{"arrays": [], "message": {"value": {"$array": 7}}}',
        '{"arrays": [], "message": {"value": {"$array": "x"}}}',
        "{not json",
    ],
)
def test_an_answer_that_is_no_message_costs_a_trial(world, reply):
    with pytest.raises(SimulatorCrash, match="garble: the answer is no message"):
        world.call("garble", 10.0, reply=reply)
    assert not world.running
    assert world.call("add", 10.0, number=1) == 11


def test_error_inside_a_call_is_quoted_and_the_world_continues(world):
    world.call("add", 10.0, number=5)
    with pytest.raises(EnvironmentServerError, match=r"KeyError: 'missing key'[\s\S]*fragile_world.py"):
        world.call("wrong", 10.0)
    with pytest.raises(EnvironmentServerError, match="object cannot be sent"):
        world.call("unsendable", 10.0)
    with pytest.raises(EnvironmentServerError, match="not to be called"):
        world.call("__init__", 10.0)
    assert world.call("add", 10.0, number=1) == 16


def test_after_a_lost_trial_the_world_begins_anew(world):
    world.call("add", 10.0, number=5)
    with pytest.raises(SimulatorCrash, match="lose: no scene"):
        world.call("lose", 10.0)
    assert not world.running
    assert world.call("add", 10.0, number=1) == 11


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        ("exit", "exit code 3[\\s\\S]*no licence"),
        ("raise", "OSError: no display"),
        ("sleep", "no answer within 3 s"),
    ],
)
def test_a_world_that_cannot_start_is_no_lost_trial(fail, words):
    world = EnvironmentServer(ADAPTER, {"fail": fail}, start_timeout=3.0)
    with pytest.raises(EnvironmentServerError, match=words):
        world.call("add", 10.0, number=1)
    assert not world.running


def test_a_start_that_fails_after_one_that_did_not_costs_a_trial(world):
    world.call("add", 10.0, number=1)
    world.close()
    world.settings["fail"] = "exit"
    with pytest.raises(SimulatorCrash, match=r"add: the environment server could not start[\s\S]*no licence"):
        world.call("add", 10.0, number=1)
    del world.settings["fail"]
    assert world.call("add", 10.0, number=1) == 11


def test_an_interpreter_that_is_none():
    with pytest.raises(EnvironmentServerError, match="'/no/python' cannot be run"):
        EnvironmentServer(ADAPTER, {}, python=["/no/python"]).call("add", 1.0)
    with pytest.raises(
        EnvironmentServerError, match=r"connected it left with exit code 1. It had printed nothing"
    ):
        EnvironmentServer(ADAPTER, {}, python=["false"]).call("add", 1.0)
    with pytest.raises(EnvironmentServerError, match="no connection within 1 s"):
        EnvironmentServer(ADAPTER, {}, python=["sh", "-c", "sleep 60"], start_timeout=1.0).call("add", 1.0)


def test_a_wrapper_that_mixes_outputs_does_no_harm():
    wrapped = EnvironmentServer(
        ADAPTER, {}, python=["sh", "-c", 'echo noise; "$0" "$@" 2>&1', sys.executable]
    )
    assert wrapped.call("chatter", 10.0, lines=1) == 1
    wrapped.close()


def test_a_stranger_on_the_port_is_turned_away(tmp_path):
    """A program that meddles connects first, says the wrong word, and then lets the real server come."""
    meddler = tmp_path / "meddler.py"
    meddler.write_text(
        "import socket, subprocess, sys\n"
        "host, port = sys.argv[sys.argv.index('--connect') + 1].split(':')\n"
        "socket.create_connection((host, int(port))).sendall(b'x' * 32)\n"
        "sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))\n"
    )
    world = EnvironmentServer(ADAPTER, {"start": 1}, python=[sys.executable, str(meddler)])
    assert world.call("add", 20.0, number=1) == 2
    world.close()


def test_an_abandoned_world_is_ended():
    world = EnvironmentServer(ADAPTER, {})
    world.call("add", 10.0, number=1)
    pid = world._live._process.pid
    del world
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_garbage_on_the_wire_is_refused(wire):
    near, far = wire
    near.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ConnectionError, match="no message begins with"):
        server.receive(far)


@pytest.mark.parametrize("dtype", ["|O", "<M8[s]", "<U3"])
def test_arrays_of_no_numbers_are_refused_on_both_sides(wire, dtype):
    near, far = wire
    with pytest.raises(TypeError, match="cannot be sent"):
        server.send(near, np.zeros(2, dtype))
    text = b'{"message": null, "arrays": [{"dtype": "%s", "shape": [2]}]}' % dtype.encode()
    near.sendall(server._PREFIX.pack(server._MAGIC, len(text), 1) + text)
    with pytest.raises(ConnectionError, match="may be sent"):
        server.receive(far)


def test_pickles_and_objects_are_no_messages(wire):
    for value in (pickle.dumps(1), {1: 2}, {"$array": 0}, {1, 2}, object()):
        with pytest.raises(TypeError, match="cannot be sent"):
            server.send(wire[0], value)


def test_deadline_is_for_the_whole_message(wire):
    near, far = wire
    message = server._PREFIX.pack(server._MAGIC, 1 << 20, 0)

    def drip():
        near.sendall(message)
        for _ in range(20):
            time.sleep(0.05)
            near.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        server.receive(far, began + 0.3)
    assert time.monotonic() - began < 0.8
    thread.join()


def test_files_of_the_far_side_are_python_3_10_and_import_nothing_of_ours():
    files = list(FOLDER.glob("*.py"))
    neighbours = {path.stem for path in files}  # an adapter may import the files beside it
    for path in files:
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        foreign = {name.split(".")[0] for name in names} - sys.stdlib_module_names
        assert foreign <= {"numpy", "rlbench", "pyrep", "PIL", *neighbours}, (path.name, foreign)
        assert "pickle" not in names


def test_server_alone_says_how_it_is_called():
    said = subprocess.run([sys.executable, "-I", FOLDER / "server.py", "-h"], capture_output=True, text=True)
    assert said.returncode == 0
    assert "--adapter" in said.stdout


def _within(seconds, condition):
    """What the condition gives, once it gives anything."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _group(leader):
    """Processes of a group."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [int(stat.split()[0]) for stat in stats if int(stat.rsplit(") ", 1)[1].split()[2]) == leader]


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
