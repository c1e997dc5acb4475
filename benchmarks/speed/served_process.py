"""`ai-wam serve` in a process of its own, and clients that behave badly."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from ai_wam.errors import CannotContinue
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop.simulator import Tabletop

_LONGEST = 300.0  # seconds until it is ready, or has ended


class ServedProcess:
    """A server; stopped by SIGTERM when the block ends.

    Args:
        checkpoint: what is served.
        folder: for its log.
        options: of the command.
        port: 0 for any free one.
    """

    def __init__(self, checkpoint: Path, folder: Path, options: Mapping[str, Any], port: int = 0) -> None:
        self.log = folder / f"served-{time.monotonic_ns()}.jsonl"
        asked = {"ckpt_path": checkpoint, "port": port, "log": self.log, "threads": 1} | dict(options)
        words = [f"--{name}={value}" for name, value in asked.items()]
        program = "from ai_wam.cli import main; main()"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._output = self.log.with_suffix(".txt")
        with self._output.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, "serve", *words],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(lambda: bool(self.events("ready")))
        self.port = int(self.events("ready")[0]["port"])
        self.address = f"127.0.0.1:{self.port}"

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the log has of one kind."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if event["event"] == kind]

    def wait_for(self, ready: Callable[[], bool], seconds: float = _LONGEST) -> None:
        """Wait until something has come about.

        Raises:
            RuntimeError: the server ended, or it took too long.
        """
        end = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise CannotContinue(
                    f"the server (status {self._process.poll()}) did not get there within {seconds:g} s: "
                    f"{self._output.read_text(encoding='utf-8')[-2000:]}"
                )
            time.sleep(0.02)

    def megabytes(self) -> float:
        """Memory that it holds now."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._process.kill()
        self._process.wait()

    def wait_until_ended(self) -> None:
        """Return when the process has ended."""
        self._process.wait(_LONGEST)

    def stop(self) -> int:
        """Stop it by SIGTERM; its status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_LONGEST)

    def __enter__(self) -> "ServedProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.stop()


class SilentPeer:
    """A client that opens a session, may ask, and then neither reads nor answers pings."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"), max_size=None)
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        self._protocol.receive_data(self._socket.recv(1024))

    def ask(self, data: bytes) -> None:
        """Send a message."""
        self._protocol.send_binary(data)
        self._flush()

    def close(self) -> None:
        """Close the socket without a word."""
        self._socket.close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            self._socket.sendall(data)


def robot(seed: int, image_size: tuple[int, int], views: list[str]) -> dict[str, Any]:
    """The message of a robot in a scene of the tabletop's `reach_target`."""
    simulator = Tabletop(rig="framed", image_size=image_size)
    prompt = simulator.reset(Trial("reach_target", 0, seed))[0]
    seen = simulator.observe(views)
    simulator.close()
    kept = ("intrinsics", "world_from_camera")
    return {
        "images": {name: view.image for name, view in seen.views.items()},
        "cameras": {name: {key: getattr(view, key) for key in kept} for name, view in seen.views.items()},
        "state": seen.action,
        "prompt": prompt,
        "seconds": 0.0,
        "episode": f"robot-{seed}",
    }
