"""What happens to a served policy when clients or the server itself fail, while another client is served."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import connect

from ai_wam.client import Connection, ConnectionLost
from ai_wam.client.messages import pack
from ai_wam.errors import CannotContinue
from benchmarks.speed.served_process import ServedProcess, SilentPeer, robot

_SILENT = 2.0  # seconds: --limits.silent_seconds of the server
_LIMITS = {"limits.silent_seconds": _SILENT, "limits.message_mb": 16.0}
_ASKING = """
import sys
from ai_wam.client import Connection
from ai_wam.client.messages import unpack
with Connection(sys.argv[1]) as client:
    message = unpack(open(sys.argv[2], "rb").read(), sys.argv[2])
    while True:
        client.ask(message)
        print("answered", flush=True)
"""


@dataclass
class Witness:
    """A well-behaved client that asks on and on.

    Attributes:
        waits: seconds of each answer.
        error: why it ended, if it did.
    """

    address: str
    message: Mapping[str, Any]
    waits: list[float] = field(default_factory=list)
    error: Exception | None = None

    @contextmanager
    def asking(self) -> Iterator["Witness"]:
        """Ask in a thread; at the end at least one answer must have come after everything else."""
        stop = threading.Event()

        def run() -> None:
            try:
                with Connection(self.address) as client:
                    while not stop.is_set():
                        begun = time.monotonic()
                        client.ask(self.message)
                        self.waits.append(time.monotonic() - begun)
            except Exception as error:
                self.error = error

        thread = threading.Thread(target=run)
        thread.start()
        try:
            self._wait_for_answers(1)
            yield self
            self._wait_for_answers(len(self.waits) + 2)
        finally:
            stop.set()
            thread.join()

    def _wait_for_answers(self, count: int) -> None:
        end = time.monotonic() + 60
        while len(self.waits) < count and self.error is None and time.monotonic() < end:
            time.sleep(0.01)


def print_faults(checkpoint: Path, folder: Path) -> bool:
    """Print what came of every fault; whether the other client was served each time."""
    good = True
    with ServedProcess(checkpoint, folder, _LIMITS) as server:
        with Connection(server.address) as client:
            known = client.metadata
        message = robot(0, tuple(known["image_size"]), known["views"])
        print(f"{'fault':<26}{'others: answers, longest':<26} what is said")
        for name, fault in {**_requests(message), **_connections(message, folder)}.items():
            witness = Witness(server.address, message)
            with witness.asking():
                said = fault(server)
            good &= witness.error is None and len(witness.waits) > 1 and said is not None
            served = f"{len(witness.waits)}, {1e3 * max(witness.waits, default=0):.0f} ms"
            print(f"{name:<26}{served:<26} {said or 'NOTHING'}", flush=True)
    said = _server_killed(checkpoint, folder, message)
    print(f"{'server killed, restarted':<26}{'':<26} {said}", flush=True)
    return good


Fault = Callable[[ServedProcess], str | None]


def _requests(message: Mapping[str, Any]) -> dict[str, Fault]:
    """Requests that are refused by a sentence; the same session is then served."""
    state = np.array(message["state"])
    cameras = {"elsewhere": next(iter(message["cameras"].values()))}
    images = {name: image[..., 0] for name, image in message["images"].items()}
    bad = {
        "malformed bytes": b"\xc1" * 100,
        "wrong shapes": pack({**message, "images": images}),
        "NaN": pack({**message, "state": state * np.nan}),
        "wrong cameras": pack({**message, "cameras": cameras}),
    }
    return {name: _refused(data, pack(message)) for name, data in bad.items()}


def _refused(data: bytes, good: bytes) -> Fault:
    def fault(server: ServedProcess) -> str | None:
        with connect(f"ws://{server.address}", compression=None, max_size=None) as client:
            client.recv()
            client.send(data)
            said = client.recv()
            client.send(good)
            served = client.recv()
        return said if isinstance(said, str) and isinstance(served, bytes) else None

    return fault


def _connections(message: Mapping[str, Any], folder: Path) -> dict[str, Fault]:
    """Clients that vanish, hang or send too much."""

    def oversized(server: ServedProcess) -> str | None:
        try:
            with Connection(server.address) as client:
                client.ask({"images": {"front": np.zeros(20_000_000, np.uint8)}})
        except ConnectionLost as error:
            return str(error)
        return None

    def killed(server: ServedProcess) -> str | None:
        (folder / "message").write_bytes(pack(message))
        words = [sys.executable, "-P", "-c", _ASKING, server.address, str(folder / "message")]
        before = len(server.events("session_opened"))
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
        return _when_closed(server, before)

    def half_open(server: ServedProcess) -> str | None:
        before = len(server.events("session_opened"))
        peer = SilentPeer(server.port)
        said = _when_closed(server, before)
        peer.close()
        return said

    def slow_reader(server: ServedProcess) -> str | None:
        before = len(server.events("session_opened"))
        peer = SilentPeer(server.port)
        peer.ask(pack(_many_rows(message, rows=16)))
        said = _when_closed(server, before)
        peer.close()
        return said

    return {
        "oversized message": oversized,
        "killed client": killed,
        "half-open connection": half_open,
        "slow reader": slow_reader,
    }


def _many_rows(message: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Rows of an observation with generated videos asked for: an answer of megabytes."""
    first = next(iter(message["images"].values()))
    views, (h, w) = len(message["images"]), first.shape[:2]
    cameras = message["cameras"].values()

    def stacked(name: str) -> np.ndarray:
        matrices = np.stack([camera[name] for camera in cameras]).astype(np.float32)[None, :, None]
        return np.repeat(matrices, rows, axis=0)

    parts = {
        "video": np.zeros((rows, views, 3, 1, h, w), np.float32),
        "view_mask": np.ones((rows, views), bool),
        "intrinsics": stacked("intrinsics"),
        "world_from_camera": stacked("world_from_camera"),
        "action": np.tile(np.array(message["state"], np.float32), (rows, 1)),
        "seconds": np.zeros(rows, np.float32),
        "prompts": [message["prompt"]] * rows,
        "episodes": [f"row-{row}" for row in range(rows)],
    }
    return {"observation": parts, "generated": True}


def _when_closed(server: ServedProcess, before: int) -> str:
    """The log's reason why the session that was opened after so many others ended; it must end soon."""
    begun = time.monotonic()
    server.wait_for(lambda: len(server.events("session_opened")) > before)
    name = server.events("session_opened")[before]["session"]

    def ends() -> list[str]:
        return [event["reason"] for event in server.events("session_closed") if event["session"] == name]

    server.wait_for(lambda: bool(ends()), seconds=10 * _SILENT)
    return f"log, after {time.monotonic() - begun:.1f} s: {ends()[0]}"


def _server_killed(checkpoint: Path, folder: Path, message: Mapping[str, Any]) -> str:
    """A robot's errors when the server dies while it computes, and that it is served by the next one."""
    first = ServedProcess(checkpoint, folder, _LIMITS)
    client, said = Connection(first.address), []
    threading.Timer(0.02, first.kill).start()  # in the middle of a chunk
    for ask in (lambda: client.ask(message), client.connect):
        try:
            ask()
        except ConnectionLost as error:
            said.append(str(error))
        first.wait_until_ended()
    with ServedProcess(checkpoint, folder, _LIMITS, first.port):
        client.connect()
        answer = client.ask(message)
        client.close()
    if len(said) != 2 or "actions" not in answer:
        raise CannotContinue(f"a client of a killed server heard {said} and got {sorted(answer)}")
    return "; then: ".join(said)
