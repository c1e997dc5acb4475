"""Acting while the next chunk is computed: the last chunk's end is carried out meanwhile, and sent along."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ai_wam.client.client import Camera, Chunk, Client
from ai_wam.errors import InvalidValue
from ai_wam.seams import jump


@dataclass(frozen=True)
class Observed:
    """What a robot sees and where its tool is, at one moment; see `Client.predict_action`."""

    images: Mapping[str, np.ndarray]
    cameras: Mapping[str, Camera]
    state: np.ndarray


@dataclass(frozen=True)
class Step:
    """One action to carry out until the next call.

    Attributes:
        action: [8], as in a chunk.
        late: the plan has ended and the next chunk is not there: the last action is held.
        seam: millimetres and degrees between the two chunks' poses where a new one took over at this step;
            None where none did.
    """

    action: np.ndarray
    late: bool
    seam: tuple[float, float] | None


class RealTimeControl:
    """Gives one action at a time and requests the next chunk early enough; call `step` every dt.

    After `execute` actions of a chunk a new observation is sent together with the next `prefix` actions,
    which are carried out whatever is answered. The new chunk takes over behind them, or where the robot is
    by then if the answer comes later. An invalid action is replaced by the one before it.

    Args:
        client: connected to the policy.
        instruction: what to do.
        execute: actions between two requests.
        prefix: actions that are committed while a chunk is computed: at least the answer's time over dt. The
            policy may take some numbers only (`metadata["prefixes"]`).
        condition: send the committed actions, so that the new chunk continues them.

    Attributes:
        seams: of all chunks that took over so far.
        late: steps at which an action was held because no chunk was there.

    Raises:
        ValueError: numbers of actions that the policy's chunks cannot have.
    """

    def __init__(
        self, client: Client, instruction: str, execute: int, prefix: int, condition: bool = True
    ) -> None:
        horizon, prefixes = int(client.metadata["horizon"]), list(client.metadata["prefixes"])
        if execute < 1 or prefix < 0 or execute + prefix > horizon:
            raise InvalidValue(
                f"execute is {execute} and prefix {prefix}: execute is at least 1, and together "
                f"they are at most {horizon}, the actions of a chunk"
            )
        if condition and prefix and prefix not in prefixes:
            raise InvalidValue(
                f"prefix is {prefix}; this policy takes {prefixes or 'none'}; choose one of them, or "
                "condition=False"
            )
        self.client, self.instruction, self.execute, self.prefix = client, instruction, execute, prefix
        self.condition = condition
        self.seams: list[tuple[float, float]] = []
        self.late = 0
        self._now = 0  # actions handed out, and the index of the last one
        self._asked_at = self._ahead = 0  # of the last request: when, and how many actions were committed
        self._failed = False  # the last request
        self._plan: dict[int, np.ndarray] = {}  # actions by index; 0 is where the tool was at the start
        self._answer: Future[Chunk] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ai-wam-client")

    def start(self, observe: Callable[[], Observed]) -> None:
        """Wait for the first chunk; the robot holds still meanwhile."""
        seen = observe()
        self._plan = {0: np.asarray(seen.state, dtype=np.float64)}
        self._now = self._asked_at = self._ahead = 0
        self._answer, self._failed = None, False  # of an episode before
        self._insert(self._predict(seen, 0, None))

    def step(self, observe: Callable[[], Observed]) -> Step:
        """The next action.

        Args:
            observe: called where a new chunk is due, and only then.

        Raises:
            RequestRefused: the server refused the last observation.
            ConnectionLost: the connection ended. The step's action was not given, so call `step` again: it
                asks again, and goes on with the old plan meanwhile.
        """
        seam = None
        if self._answer is not None and self._answer.done():
            answer, self._answer, self._failed = self._answer, None, True
            seam = self._insert(answer.result())
            self._failed = False
        if self._answer is None and (self._failed or self._now - self._asked_at >= self.execute):
            self._request(observe())
        self._now += 1
        late = self._now not in self._plan
        self.late += late
        if late:
            self._plan[self._now] = self._plan[self._now - 1]
        self._plan.pop(self._now - 2, None)
        return Step(self._plan[self._now], late, seam)

    def close(self) -> None:
        """Wait for the request in flight, and end the thread that asks."""
        self._thread.shutdown()

    def _request(self, seen: Observed) -> None:
        self._asked_at, self._failed = self._now, False
        ahead = [self._plan.get(index) for index in range(self._now + 1, self._now + 1 + self.prefix)]
        known = [action for action in ahead if action is not None]
        self._ahead = len(known)
        whole = self.condition and 0 < len(known) == self.prefix  # the policy takes no shorter prefix
        committed = np.stack(known) if whole else None
        self._answer = self._thread.submit(self._predict, seen, self._now, committed)

    def _predict(self, seen: Observed, index: int, committed: np.ndarray | None) -> Chunk:
        seconds = index * float(self.client.metadata["dt"])
        return self.client.predict_action(
            seen.images, seen.cameras, self.instruction, seen.state, seconds, committed
        )

    def _insert(self, chunk: Chunk) -> tuple[float, float] | None:
        """Let a chunk take over behind the committed actions; the seam with the one before, if any."""
        asked, first_chunk = self._asked_at, self._asked_at == 0
        last, fresh = self._plan.get(asked, self._plan[self._now]), dict[int, np.ndarray]()
        for offset, (action, valid) in enumerate(zip(chunk.actions, chunk.valid, strict=True), start=1):
            last = action.astype(np.float64) if valid else last
            fresh[asked + offset] = last
        end = self._now if first_chunk else max(self._now, asked + self._ahead)  # of the chunk before
        both = [index for index in (end, end + 1) if index in self._plan and index in fresh]
        seam = None if first_chunk or not both else jump(self._plan[both[0]], fresh[both[0]])
        if seam is not None:
            self.seams.append(seam)
        kept = {index: action for index, action in self._plan.items() if index <= end}
        self._plan = kept | {index: action for index, action in fresh.items() if index > end}
        return seam
