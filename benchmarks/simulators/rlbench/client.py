"""Client of a simulator in a process and interpreter of its own, so that its crashes cost one trial each."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ai_wam.errors import CannotContinue
from benchmarks.simulator import SimulatorCrash
from benchmarks.simulators.rlbench.environment_server.server import TOKEN, receive, send

_SERVER = Path(__file__).with_name("environment_server") / "server.py"
_MISSING = ("ModuleNotFoundError", "ImportError", "OSError")  # of packages and of the libraries they load
_TAIL = 3000  # bytes of the log that an error quotes
_GRACE = 5.0  # seconds to wait until a process ends by itself


class EnvironmentServerError(CannotContinue):
    """The server cannot be started, or its adapter is faulty: trying again would not help."""


class EnvironmentServer:
    """Calls the methods of an adapter's `World` in another process, which starts with the first call.

    After a crash, a hang or a lost trial the process group is ended, `SimulatorCrash` is raised, and the next
    call starts a new one.

    Args:
        adapter: file that defines `World`; see `benchmarks.simulators.rlbench.environment_server.server`.
        settings: arguments of `World`.
        python: command of the interpreter, such as ("xvfb-run", "-a", "/opt/rlbench/bin/python").
        paths: folders put before the interpreter's own.
        environment: variables set on top of this process's.
        start_timeout: seconds within which the world must be ready.
        advice: what to do where the world's packages are missing.
    """

    def __init__(
        self,
        adapter: Path,
        settings: Mapping[str, Any],
        python: Sequence[str] = (sys.executable,),
        paths: Sequence[str | Path] = (),
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 180.0,
        advice: str = "",
    ) -> None:
        self.adapter, self.settings, self.python = Path(adapter), dict(settings), tuple(python)
        self.paths, self.environment = tuple(paths), dict(environment or {})
        self.start_timeout, self.advice = start_timeout, advice
        self.versions: Mapping[str, str] = {}
        self._live: _Process | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process now."""
        return self._live is not None

    def call(self, name: str, timeout: float, **arguments: Any) -> Any:
        """Call a method of the world.

        Args:
            name: of the method.
            timeout: seconds within which the answer must arrive.
            **arguments: JSON values and numpy arrays.

        Raises:
            SimulatorCrash: the process died, hung, lost the trial, or did not start again after it once had.
            EnvironmentServerError: it cannot be started at all, or the method raised another error.
        """
        if self._live is None:
            try:
                self._live = self._start()
            except EnvironmentServerError as error:
                if not self.versions:
                    raise
                # It could be started before, so it may be again: this failure costs one trial only.
                raise SimulatorCrash(f"{name}: {error}") from error
        return self._call(self._live, name, timeout, arguments)

    def log(self) -> str:
        """The end of what the running process printed."""
        return "" if self._live is None else self._live.tail()

    def close(self) -> None:
        """End the process."""
        if self._live is not None:
            live, self._live = self._live, None
            live.close()

    def _start(self) -> "_Process":
        live = _Process(
            [*self.python, "-I", str(_SERVER), "--adapter", str(self.adapter.resolve())]
            + [word for path in self.paths for word in ("--path", str(Path(path).resolve()))],
            {**os.environ, **self.environment},
            self.start_timeout,
        )
        try:
            self.versions = self._call(live, "open", self.start_timeout, self.settings)
        except SimulatorCrash as crash:
            raise EnvironmentServerError(f"the environment server could not start: {crash}") from None
        except EnvironmentServerError:
            live.kill()
            raise
        return live

    def _call(self, live: "_Process", name: str, timeout: float, arguments: Mapping[str, Any]) -> Any:
        try:
            live.connection.settimeout(timeout)
            send(live.connection, {"call": name, "arguments": dict(arguments)})
            value, failed = _parts(receive(live.connection, time.monotonic() + timeout))
        except TimeoutError:
            self._live = None
            raise SimulatorCrash(f"{name}: no answer within {timeout:g} s; killed. {live.kill()}") from None
        except (ConnectionError, OSError) as error:
            self._live = None
            raise SimulatorCrash(f"{name}: {error}; the process {live.end_broken()}") from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._live = None
            why = f"{type(error).__name__}: {error}"
            raise SimulatorCrash(f"{name}: the answer is no message ({why}); killed. {live.kill()}") from None
        if failed is not None:
            raise self._error(name, failed, live.tail())
        return value

    def _error(self, name: str, error: Mapping[str, Any], tail: str) -> RuntimeError:
        if error["lost"]:
            self.close()  # the world may be in any state
            return SimulatorCrash(f"{name}: {error['message']}")
        if name == "open" and error["type"] in _MISSING:
            way = f"; {self.advice}" if self.advice else ""
            return EnvironmentServerError(
                f"{' '.join(self.python)}: {error['type']}: {error['message']}{way}"
            )
        text = f"{name}: {error['type']}: {error['message']}\n{error['traceback']}{tail}"
        return EnvironmentServerError(text)


def _parts(reply: Any) -> tuple[Any, dict[str, Any] | None]:
    """The value, or what went wrong.

    Raises:
        KeyError, TypeError: a reply of another form.
    """
    if "error" not in reply:
        return reply["value"], None
    return None, {key: reply["error"][key] for key in ("type", "message", "traceback", "lost")}


class _Process:
    """A running server and the connection to it; ending it ends every process that it started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], timeout: float) -> None:
        token = secrets.token_hex(16)
        resources = ExitStack()
        log = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with `resources`
        self._log = log.fileno()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            words = [*command, "--connect", f"127.0.0.1:{listener.getsockname()[1]}"]
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    env={**environment, TOKEN: token},
                    start_new_session=True,
                )
            except OSError as error:
                resources.close()
                raise EnvironmentServerError(f"{words[0]!r} cannot be run: {error}") from error
            self._end = weakref.finalize(self, _end, self._process, resources)
            self.connection = resources.enter_context(self._accept(listener, token, timeout))

    def tail(self) -> str:
        """The end of what the process printed, as a sentence for an error."""
        size = os.fstat(self._log).st_size
        # pread, since the process writes at the offset that a seek here would move
        text = os.pread(self._log, _TAIL, max(size - _TAIL, 0)).decode(errors="replace").strip()
        return f"It had printed:\n{text}" if text else "It had printed nothing."

    def kill(self) -> str:
        """End the process and all that it started; returns the end of its log."""
        words = self.tail()
        self._end()
        return words

    def end_broken(self) -> str:
        """End a process whose connection broke; returns how it ended by itself, and the end of its log."""
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return f"closed the connection. {self.kill()}"
        if code < 0:
            return f"died of {signal.Signals(-code).name}. {self.kill()}"
        return f"left with exit code {code}. {self.kill()}"

    def close(self) -> None:
        """Close the connection, which ends the server; kill it if it does not end by itself."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._end()

    def _accept(self, listener: socket.socket, token: str, timeout: float) -> socket.socket:
        """The first connection that sends the token.

        Raises:
            EnvironmentServerError: there is none in time, or the process ended first.
        """
        listener.settimeout(0.1)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise EnvironmentServerError(
                        f"the environment server could not start: before it connected it {self.end_broken()}"
                    ) from None
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(2.0)
            if secrets.compare_digest(_greeting(connection, len(token)), token.encode()):
                return connection
            connection.close()
        raise EnvironmentServerError(
            f"the environment server could not start: no connection within {timeout:g} s. {self.kill()}"
        )


def _greeting(connection: socket.socket, length: int) -> bytes:
    try:
        return connection.recv(length, socket.MSG_WAITALL)
    except OSError:  # another program that connected and sends nothing
        return b""


def _end(process: subprocess.Popen[bytes], resources: ExitStack) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resources.close()
