"""One connection to a served policy: ask, get the answer, and errors that say what to do."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from ai_wam.client.messages import pack, unpack
from ai_wam.errors import CannotContinue, InvalidValue

_LARGEST = 2**30  # bytes of an answer; generated videos of many rows are the largest


class ConnectionLost(CannotContinue):
    """There is no connection, or no longer; `connect` makes a new one."""


class RequestRefused(InvalidValue):
    """The server refuses a request, or its policy cannot answer it; the connection stays open."""


class Connection:
    """Asks one question at a time; the session lasts as long as the connection.

    Args:
        address: such as "localhost:8000", or a ws:// or wss:// URL.
        token: of the server, if it asks for one.
        timeout: seconds to wait for the connection and for an answer.

    Attributes:
        metadata: the server's first message: policy, views, sizes, rates and limits.

    Raises:
        ConnectionLost: no server answers there, or it refuses the connection.
        ValueError: an address of another protocol.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 60.0) -> None:
        if "://" in address and not address.startswith(("ws://", "wss://")):
            raise InvalidValue(f"address must be host:port or begin with ws:// or wss://, got {address!r}")
        self.address = address if "://" in address else f"ws://{address}"
        self._token, self._timeout = None if token is None else token.strip(), timeout
        self._lock, self._open = threading.Lock(), ExitStack()
        self._socket: ClientConnection | None = None
        self.metadata: Mapping[str, Any] = {}
        self.connect()

    def connect(self) -> None:
        """Begin a new session, and end the present one."""
        self.close()
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else None
        try:
            self._socket = self._open.enter_context(
                connect(
                    self.address,
                    compression=None,
                    max_size=_LARGEST,
                    additional_headers=headers,
                    open_timeout=self._timeout,
                )
            )
        except InvalidStatus as error:
            said = (error.response.body or b"").decode(errors="replace").strip()
            status = error.response.status_code
            raise ConnectionLost(f"{self.address} refuses the connection ({status}): {said}") from error
        except (OSError, InvalidHandshake, InvalidURI) as error:
            raise ConnectionLost(
                f"no policy is served at {self.address} ({error or type(error).__name__}); start one with "
                "`ai-wam serve` or correct the address, then call connect()"
            ) from error
        self.metadata = unpack(self._receive(), f"the first message of {self.address}")

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a message.

        Raises:
            RequestRefused: the server says why it cannot answer.
            ConnectionLost: the connection ended, or the answer did not come in time.
        """
        with self._lock:
            self._send(pack(message))
            answer = self._receive()
        return unpack(answer, f"an answer of {self.address}")

    def close(self) -> None:
        """End the session."""
        self._socket = None
        self._open.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            raise ConnectionLost(f"the connection to {self.address} is closed; call connect() first")
        try:
            self._socket.send(data)
        except ConnectionClosed as error:
            raise self._lost(error) from error

    def _receive(self) -> bytes:
        assert self._socket is not None
        try:
            answer = self._socket.recv(self._timeout)
        except ConnectionClosed as error:
            raise self._lost(error) from error
        except TimeoutError as error:
            self.close()  # or the late answer would be taken for that to the next question
            raise ConnectionLost(
                f"{self.address} did not answer within {self._timeout:g} s; give a longer timeout or look at "
                "the server's log, then call connect() and ask again with a new observation"
            ) from error
        if isinstance(answer, str):
            raise RequestRefused(answer)
        return answer

    def _lost(self, error: ConnectionClosed) -> ConnectionLost:
        frame = error.rcvd or error.sent
        why = f"{frame.code} {frame.reason}".strip() if frame is not None else "without a word"
        self.close()
        if frame is not None and frame.code == CloseCode.MESSAGE_TOO_BIG:
            return ConnectionLost(
                f"{self.address} takes no message of that size ({why}); send fewer rows or smaller "
                "pictures, or have the server started with a larger --limits.message_mb, then call connect()"
            )
        return ConnectionLost(
            f"the connection to {self.address} ended ({why}) and an answer may be lost; call connect() and "
            "ask again with a new observation"
        )
