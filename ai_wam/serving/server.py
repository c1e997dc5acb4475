"""The server: accepts sessions, answers their requests, and stops when what it accepted is finished."""

import asyncio
import hmac
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from ai_wam.client.messages import pack, unpack
from ai_wam.errors import CannotContinue, InvalidValue, UserError
from ai_wam.serving.batching import Answer, Batcher
from ai_wam.serving.json_log import JsonLog, library_logger
from ai_wam.serving.limits import Limits, Rate
from ai_wam.serving.metrics import Metrics
from ai_wam.serving.requests import Request, Session
from ai_wam.types import Clip, Policy

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PARTS = ("actions", "valid", "confidence", "position_std", "status")  # of a chunk
_STOPPING = "the server is stopping; connect again when it is back"


class PolicyServer:
    """Serves one policy to several clients at once.

    Args:
        policy: what acts.
        clip: its views, size and rate.
        metadata: more of the first message.
        limits: of messages, sessions and time.
        most_rows: of one batch of the network.
        wait_seconds: that a batch waits for the requests of other sessions.
        token: that clients must send; None: any client of this machine may connect.
        log: of events.
    """

    def __init__(
        self,
        policy: Policy,
        clip: Clip,
        metadata: Mapping[str, Any],
        log: JsonLog,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        most_rows: int = 16,
        wait_seconds: float = 0.005,
        token: str | None = None,
    ) -> None:
        self.policy, self.clip, self.metadata, self.log = policy, clip, dict(metadata), log
        self.limits, self.most_rows, self.token = limits, most_rows, token
        self.metrics = Metrics()
        self._batcher = Batcher(policy, most_rows, wait_seconds, lambda: len(self._busy))
        self._busy: dict[ServerConnection, bool] = {}  # whether a request is being answered
        self._tasks: dict[ServerConnection, asyncio.Task[Any]] = {}  # that answer
        self._count = 0  # sessions so far
        self._ready = self._stopping = False

    async def run(
        self,
        host: str,
        port: int,
        stop: asyncio.Event,
        warm_up: Callable[[], None],
        ready: Callable[[int], None],
    ) -> int:
        """Listen, warm up, answer until `stop` is set, and finish what was accepted; once.

        Args:
            host: the address to listen at.
            port: 0 for any free one.
            stop: set it to stop.
            warm_up: first uses of the policy; health is 503 until it is done.
            ready: called with the port when requests are answered.

        Returns:
            How many requests were cut off, since they took longer than the limit to finish.

        Raises:
            ValueError: an address beyond this machine without a token.
            RuntimeError: an address at which the machine does not let it listen.
        """
        check_address(host, self.token)
        server = await self._listening(host, port)
        batches = asyncio.create_task(self._batcher.run())
        try:
            self.log("listening", host=host, port=_port(server))
            await asyncio.to_thread(warm_up)
            self._set_ready(True)
            self.log("ready", port=_port(server))
            ready(_port(server))
            await stop.wait()
        finally:
            cut_off = await self._finish(server)
            batches.cancel()
            with suppress(asyncio.CancelledError):
                await batches
            self._batcher.close()
        return cut_off

    async def _listening(self, host: str, port: int) -> Server:
        try:
            return await serve(
                self._session,
                host,
                port,
                process_request=self._before_session,
                logger=library_logger(self.log),
                compression=None,
                max_size=self.limits.message_bytes,
                max_queue=1,  # a session's next message is read when its last one is answered
                ping_interval=self.limits.silent_seconds / 2,
                ping_timeout=self.limits.silent_seconds / 2,
                close_timeout=min(5.0, self.limits.silent_seconds),
            )
        except OSError as error:
            raise CannotContinue(
                f"cannot listen at {host}:{port} ({error.strerror or error}); give another --port (0 takes "
                "any free one), or a --host of this machine"
            ) from error

    async def _finish(self, server: Server) -> int:
        """Answer what is being answered, take nothing new, and end all sessions; how many were cut off."""
        self._stopping, cut_off = True, 0
        self._set_ready(False)
        self.log("stopping", sessions=len(self._busy), answering=sum(self._busy.values()))
        server.close(close_connections=False)
        idle = [one for one, busy in self._busy.items() if not busy]
        await asyncio.gather(*(one.close(CloseCode.GOING_AWAY, _STOPPING) for one in idle))
        try:
            async with asyncio.timeout(self.limits.stop_seconds):
                await server.wait_closed()
        except TimeoutError:
            cut_off = sum(self._busy.values())
            self.log("cut_off", requests=cut_off)
            for connection, task in list(self._tasks.items()):
                connection.transport.abort()
                task.cancel()
            await server.wait_closed()
        self.log("stopped")
        return cut_off

    def _set_ready(self, ready: bool) -> None:
        self._ready = ready
        self.metrics.ready.set(ready)

    # ------------------------------------------------------------------ before a session

    def _before_session(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Health, metrics, and refusals, as HTTP; None lets the session begin."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(*self._health())
        if not self._has_token(request.headers):
            self._refuse_session(connection, "token")
            return connection.respond(
                HTTPStatus.UNAUTHORIZED,
                "the token is missing or wrong; send `Authorization: Api-Key TOKEN`\n",
            )
        if path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self.metrics.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = self.metrics.content_type
            return response
        if path != "/":
            return connection.respond(
                HTTPStatus.NOT_FOUND, "there are / (sessions), /healthz and /metrics here\n"
            )
        status, said = self._health()
        if status is not HTTPStatus.OK:
            self._refuse_session(connection, "not_ready")
            return connection.respond(status, said)
        return None

    def _health(self) -> tuple[HTTPStatus, str]:
        if self._ready:
            return HTTPStatus.OK, "OK\n"
        said = _STOPPING if self._stopping else "the policy is warming up; try again soon"
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{said}\n"

    def _has_token(self, headers: Headers) -> bool:
        if self.token is None:
            return True
        sent = headers.get_all("Authorization")
        kind, _, given = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
        same = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return same and kind in ("Api-Key", "Bearer")

    def _refuse_session(self, connection: ServerConnection, reason: str) -> None:
        self.metrics.refused_sessions.labels(reason).inc()
        self.log("session_refused", reason=reason, client=_peer(connection))

    # ------------------------------------------------------------------ a session

    async def _session(self, connection: ServerConnection) -> None:
        """One client, from its first message to its end."""
        if len(self._busy) >= self.limits.clients:
            self._refuse_session(connection, "clients")
            said = f"all {self.limits.clients} sessions are taken (--limits.clients); try again later"
            await connection.close(CloseCode.TRY_AGAIN_LATER, said)
            return
        self._count += 1
        name = f"session-{self._count}"
        self._busy[connection] = False
        task = asyncio.current_task()
        assert task is not None  # websockets runs every handler as a task
        self._tasks[connection] = task
        self.metrics.sessions.set(len(self._busy))
        self.log("session_opened", session=name, client=_peer(connection))
        why = "closed by the client"
        try:
            why = await self._answer_all(connection, name)
        except ConnectionClosed as error:
            frame = error.sent or error.rcvd
            why = f"{frame.code} {frame.reason}".strip() if frame is not None else "connection lost"
        finally:
            del self._busy[connection], self._tasks[connection]
            self.metrics.sessions.set(len(self._busy))
            self.log("session_closed", session=name, reason=why)

    async def _answer_all(self, connection: ServerConnection, name: str) -> str:
        """Answer requests until the session is to end; why it is."""
        session, rate = Session(self.clip, name, self.most_rows), Rate(self.limits.rate)
        if not await self._sent(connection, pack(self.metadata)):
            return "took no message"
        last: float | None = None
        while not self._stopping:
            try:
                async with asyncio.timeout(self.limits.idle_seconds):
                    data = await connection.recv()
            except TimeoutError:
                said = f"no request for {self.limits.idle_seconds:g} s (--limits.idle_seconds); connect again"
                await connection.close(CloseCode.POLICY_VIOLATION, said)
                return said
            self._busy[connection], begun = True, time.perf_counter()
            answer = await self._answer(session, rate, data, name, last)
            sent = await self._sent(connection, answer)
            self._busy[connection], last = False, time.perf_counter() - begun
            self.metrics.request_seconds.observe(last)
            if not sent:
                return f"took no answer for {self.limits.silent_seconds:g} s"
        await connection.close(CloseCode.GOING_AWAY, _STOPPING)
        return _STOPPING

    async def _sent(self, connection: ServerConnection, answer: bytes | str) -> bool:
        """Whether the client took an answer in time; if not, the connection is dropped."""
        try:
            async with asyncio.timeout(self.limits.silent_seconds):
                await connection.send(answer)
        except TimeoutError:
            connection.transport.abort()
            return False
        return True

    async def _answer(
        self, session: Session, rate: Rate, data: bytes | str, name: str, last: float | None
    ) -> bytes | str:
        """The answer to a message; text where there is none."""
        begun = time.perf_counter()
        try:
            rate.count()
            if isinstance(data, str):
                raise InvalidValue("a message is text; send msgpack in a binary frame")
            request = session.request(unpack(data, "a message"))
            answer, values = await self._made(request, last)
            self.log("answered", session=name, ms=round(1e3 * (time.perf_counter() - begun), 2), **values)
            self.metrics.requests.labels("answered").inc()
            return answer
        except UserError as error:
            self.metrics.requests.labels("refused").inc()
            said = " ".join(str(error).split())
            self.log("refused", session=name, reason=said)
            return said
        except Exception as error:  # of the policy; the other sessions are served on
            self.metrics.requests.labels("failed").inc()
            self.log("failed", session=name, error=repr(error), trace=traceback.format_exc())
            return (
                f"the policy failed with {type(error).__name__}: {error}; the server's log has the traceback"
            )

    async def _made(self, request: Request, last: float | None) -> tuple[bytes, dict[str, Any]]:
        """The answer's bytes, and values of it for the log."""
        if request.observation is None:
            await self._batcher.reset(request.episodes)
            return pack({"reset": list(request.episodes)}), {"reset": len(request.episodes)}
        found = await self._batcher.predict(request.observation)
        self.metrics.infer_seconds.observe(found.infer_seconds)
        self.metrics.batch_rows.observe(found.rows)
        timing = {
            "infer_ms": 1e3 * found.infer_seconds,
            "queue_ms": 1e3 * found.queue_seconds,
            "batch_rows": found.rows,
        }
        if last is not None:
            timing["prev_total_ms"] = 1e3 * last
        message = _arrays(found, not request.stacked, request.generated) | {"server_timing": timing}
        return pack(message), {name: round(value, 2) for name, value in timing.items()}


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        ValueError: the message says how to give one.
    """
    if host not in _LOOPBACK and not token:
        raise InvalidValue(
            f"host is {host!r}, where other machines can connect: give --token_file FILE with a token that "
            "clients must send, or leave --host out to serve this machine only"
        )


def _arrays(found: Answer, single: bool, generated: bool) -> dict[str, Any]:
    """A chunk as arrays by name."""
    chunk, row = found.chunk, (0 if single else slice(None))
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(tensor[row].cpu().numpy())
        for name in _PARTS
        if (tensor := getattr(chunk, name)) is not None
    }
    if generated:
        videos = chunk.generated.items()
        arrays["generated"] = {name: video[row].float().cpu().numpy() for name, video in videos}
    return arrays | {"dt": float(chunk.dt)}


def _port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)
