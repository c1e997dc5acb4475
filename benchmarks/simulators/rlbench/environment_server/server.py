"""The server of `benchmarks.simulators.rlbench.client`: makes one world and answers calls to its methods.

    python -I server.py --connect 127.0.0.1:PORT --adapter FILE [--path FOLDER ...]

Runs in the simulator's interpreter: standard library and numpy only, Python 3.10 or later. `-I` and loading
the adapter by its path keep our folders off `sys.path`, where our `rlbench` would shadow the real one.

A message is a magic word, two lengths, JSON, and the bytes of the arrays that JSON refers to as
`{"$array": number}`. Nothing is pickled, so neither side can make the other run code. Messages have a
connection of their own, since what a simulator prints goes to the log.
"""

import argparse
import faulthandler
import importlib.util
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np

TOKEN = "AI_WAM_SERVER_TOKEN"  # environment variable, by which the client recognises the server it started
_MAGIC = b"AIWAM001"
_PREFIX = struct.Struct("<8sII")  # magic, bytes of JSON, number of arrays
_MOST_JSON, _MOST_BYTES = 1 << 26, 1 << 32
_KEY = "$array"
_WATCH = 1.0  # seconds between two checks of the parent process


def send(connection: socket.socket, message: Any) -> None:
    """Send JSON values, which may contain numpy arrays and scalars anywhere.

    Raises:
        TypeError: something that is neither.
    """
    arrays: list[np.ndarray] = []
    plain = _without_arrays(message, arrays)
    shapes = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    text = json.dumps({"message": plain, "arrays": shapes}).encode()
    connection.sendall(_PREFIX.pack(_MAGIC, len(text), len(arrays)) + text)
    for array in arrays:
        if array.nbytes:
            connection.sendall(np.ascontiguousarray(array).reshape(-1).data.cast("B"))


def receive(connection: socket.socket, deadline: float = math.inf) -> Any:
    """Receive what `send` sent; arrays are writable.

    Args:
        connection: connected stream socket.
        deadline: `time.monotonic()` by which the whole message must have come.

    Raises:
        ConnectionError: the other side has closed the connection, or sent something else.
        TimeoutError: the deadline has passed.
    """
    magic, length, count = _PREFIX.unpack(_bytes(connection, _PREFIX.size, deadline))
    if magic != _MAGIC or length > _MOST_JSON:
        raise ConnectionError(f"no message begins with {magic!r} and {length} bytes of JSON")
    header = json.loads(_bytes(connection, length, deadline))
    if len(header["arrays"]) != count:
        raise ConnectionError(f"a message of {count} arrays describes {len(header['arrays'])}")
    arrays = [_array(connection, spec, deadline) for spec in header["arrays"]]
    return _with_arrays(header["message"], arrays)


def _without_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"an array of dtype {value.dtype} cannot be sent; numbers and truth values can")
        arrays.append(value)
        return {_KEY: len(arrays) - 1}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        if _KEY in value or not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys {list(value)} cannot be sent; they must be texts other than {_KEY!r}")
        return {key: _without_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(item, arrays) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be sent; JSON values and numpy arrays can")


def _with_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, dict):
        return (
            arrays[value[_KEY]]
            if _KEY in value
            else {key: _with_arrays(item, arrays) for key, item in value.items()}
        )
    return [_with_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _array(connection: socket.socket, spec: dict[str, Any], deadline: float) -> np.ndarray:
    dtype, shape = np.dtype(spec["dtype"]), tuple(int(size) for size in spec["shape"])
    size = dtype.itemsize * math.prod(shape)
    if dtype.kind not in "biuf" or min(shape, default=0) < 0 or size > _MOST_BYTES:
        raise ConnectionError(f"no array of {dtype} {shape} may be sent; at most {_MOST_BYTES} bytes")
    array = np.empty(shape, dtype)
    if size:
        _fill(connection, array.reshape(-1).data.cast("B"), deadline)
    return array


def _bytes(connection: socket.socket, size: int, deadline: float) -> bytes:
    buffer = bytearray(size)
    _fill(connection, memoryview(buffer), deadline)
    return bytes(buffer)


def _fill(connection: socket.socket, view: memoryview, deadline: float) -> None:
    while len(view):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        connection.settimeout(None if math.isinf(left) else left)
        got = connection.recv_into(view)
        if got == 0:
            raise ConnectionError("the other side has gone")
        view = view[got:]


def _load(path: str) -> Any:
    """The module in a file, under a name that shadows no other; it may import its neighbours with a dot."""
    spec = importlib.util.spec_from_file_location(
        "ai_wam_adapter", path, submodule_search_locations=[os.path.dirname(path)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _answer(state: dict[str, Any], request: dict[str, Any]) -> Any:
    name, arguments = request["call"], request["arguments"]
    if name == "open":
        world = state["world"] = _load(state["adapter"]).World(**arguments)
        own = world.versions() if hasattr(world, "versions") else {}
        return {"python": sys.version.split()[0], "numpy": np.__version__, **own}
    if name.startswith("_"):
        raise AttributeError(f"{name!r} is not to be called from outside")
    return getattr(state["world"], name)(**arguments)


def serve(connection: socket.socket, adapter: str) -> None:
    """Answer calls until the client closes the connection: the value, or the error and its traceback.

    Args:
        connection: to the client.
        adapter: path of a file that defines a class `World`; the call "open" makes it.
    """
    state: dict[str, Any] = {"adapter": adapter}
    while True:
        try:
            request = receive(connection)
        except ConnectionError:
            return
        try:
            reply = {"value": _answer(state, request)}
            send(connection, reply)
        except ConnectionError:
            return
        except Exception as error:
            described = {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
                "lost": bool(getattr(error, "lost", False)),  # the trial is lost, the adapter is not faulty
            }
            send(connection, {"error": described})


def _end_with(parent: int, connection: socket.socket) -> None:
    """End this process when its parent has ended, also while a call hangs inside the simulator."""
    hung_up = select.poll()
    hung_up.register(connection, select.POLLRDHUP)
    while os.getppid() == parent and not hung_up.poll(1000.0 * _WATCH):
        pass
    time.sleep(_WATCH)  # a server that does not hang ends by itself
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)  # processes that the simulator started end too
    os._exit(1)


def main() -> None:
    """Connect to the client and serve it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connect", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--path", action="append", default=[])
    arguments = parser.parse_args()
    faulthandler.enable()  # a segmentation fault leaves its Python stack in the log
    sys.path[:0] = [os.path.abspath(path) for path in arguments.path]
    host, port = arguments.connect.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(os.environ.pop(TOKEN).encode())
        watch = threading.Thread(target=_end_with, args=(os.getppid(), connection), daemon=True)
        watch.start()
        serve(connection, os.path.abspath(arguments.adapter))


if __name__ == "__main__":
    main()
    # CoppeliaSim's threads and destructors may hang or crash a process that has nothing left to do.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
