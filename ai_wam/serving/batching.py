"""Requests of all sessions that wait together go through the network as one batch."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ai_wam.cameras import Cameras
from ai_wam.types import ActionChunk, Committed, Observation, Policy


@dataclass(frozen=True)
class Answer:
    """A chunk of a request's own rows, and how it came about.

    Attributes:
        chunk: the actions.
        queue_seconds: waited for the network.
        infer_seconds: in the network, with all that was computed together.
        rows: computed together.
    """

    chunk: ActionChunk
    queue_seconds: float
    infer_seconds: float
    rows: int


@dataclass
class _Waiting:
    """A request that waits for the network."""

    observation: Observation
    answer: "asyncio.Future[Answer]"
    since: float = field(default_factory=time.perf_counter)

    @property
    def rows(self) -> int:
        return len(self.observation.episodes)

    @property
    def kind(self) -> int:
        """Requests of one kind can be joined: those with equally many committed actions."""
        committed = self.observation.committed
        return 0 if committed is None else 1 + committed.actions.shape[1]


class Batcher:
    """Runs a policy in a thread of its own, as many waiting requests at once as fit.

    Args:
        policy: gets observations whose rows are those of several sessions.
        most_rows: of one batch.
        wait_seconds: that a batch waits for sessions which have no request waiting.
        sessions: number of open sessions, at most so many requests can be waiting.
    """

    def __init__(
        self, policy: Policy, most_rows: int, wait_seconds: float, sessions: Callable[[], int]
    ) -> None:
        self.policy, self.most_rows, self.wait_seconds = policy, most_rows, wait_seconds
        self._sessions = sessions
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ai-wam-policy")

    @property
    def waiting(self) -> int:
        """Requests that wait for the network."""
        return len(self._queue)

    async def predict(self, observation: Observation) -> Answer:
        """The policy's chunk for the rows of an observation.

        Raises:
            Exception: whatever the policy raises for these rows.
        """
        one = _Waiting(observation, asyncio.get_running_loop().create_future())
        self._queue.append(one)
        self._arrived.set()
        return await one.answer

    async def reset(self, episodes: Sequence[str]) -> None:
        """Say to the policy that episodes begin, after what it computes now."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.policy.reset, episodes)

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            await self._some()
            batch = self._take()
            for part in [batch] if await self._compute(batch) else [[one] for one in batch]:
                if not part[0].answer.done():
                    await self._compute(part, alone=True)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _some(self) -> None:
        """Wait for a request, and a moment for those of other sessions."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wait_seconds):
                while len(self._queue) < min(self.most_rows, self._sessions()):
                    self._arrived.clear()
                    await self._arrived.wait()

    def _take(self) -> list[_Waiting]:
        """The oldest request and those of its kind that fit into a batch with it."""
        first = self._queue.popleft()
        batch, rows, left = [first], first.rows, deque[_Waiting]()
        for one in self._queue:
            fits = one.kind == first.kind and rows + one.rows <= self.most_rows
            (batch if fits else left).append(one)
            rows += one.rows * fits
        self._queue = left
        return batch

    async def _compute(self, batch: Sequence[_Waiting], alone: bool = False) -> bool:
        """Answer a batch, and return True; False if it fails and one of its requests alone may be why."""
        observation, begun = joined([one.observation for one in batch]), time.perf_counter()
        try:
            chunk = await asyncio.get_running_loop().run_in_executor(
                self._thread, self.policy.predict_action, observation
            )
        except Exception as error:
            if not alone and len(batch) > 1:
                return False
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return True
        spent, row, rows = time.perf_counter() - begun, 0, len(observation.episodes)
        for one in batch:
            part = _rows(chunk, slice(row, row + one.rows))
            row += one.rows
            if not one.answer.done():  # its session may have ended meanwhile
                one.answer.set_result(Answer(part, begun - one.since, spent, rows))
        return True


def joined(observations: Sequence[Observation]) -> Observation:
    """The rows of several observations as one."""
    if len(observations) == 1:
        return observations[0]
    first = observations[0]
    tensors = {
        name: torch.cat([getattr(each, name) for each in observations])
        for name, value in vars(first).items()
        if isinstance(value, Tensor)
    }
    cameras = Cameras(
        torch.cat([each.cameras.intrinsics for each in observations]),
        torch.cat([each.cameras.world_from_camera for each in observations]),
    )
    committed = [each.committed for each in observations if each.committed is not None]
    return replace(
        first,
        cameras=cameras,
        prompts=tuple(prompt for each in observations for prompt in each.prompts),
        episodes=tuple(name for each in observations for name in each.episodes),
        committed=Committed(
            torch.cat([each.actions for each in committed]), torch.cat([each.valid for each in committed])
        )
        if committed
        else None,
        **tensors,
    )


def _rows(chunk: ActionChunk, rows: slice) -> ActionChunk:
    """Some rows of a chunk."""
    parts: dict[str, Any] = {
        each.name: value[rows]
        for each in fields(chunk)
        if isinstance(value := getattr(chunk, each.name), Tensor)
    }
    return replace(chunk, generated={name: video[rows] for name, video in chunk.generated.items()}, **parts)
