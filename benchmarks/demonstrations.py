"""A simulator's scripted experts as a source of episodes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Episode, Frame, SourceCard
from ai_wam.errors import InvalidIndex, InvalidValue, LostEpisode
from ai_wam.utils.class_paths import class_path
from benchmarks.shifts import Shift, ShiftedSimulator
from benchmarks.simulator import Simulator, SimulatorCrash, Trial

log = logging.getLogger(__name__)


class Demonstrations:
    """An `ai_wam.episodes.EpisodeSource` of a simulator's demonstrations.

    Tasks alternate, and so do each task's variations, so that any part of the source is balanced. Episode
    `i` is always the same: its scene depends on its number alone, and so do the scenes tried next where the
    expert fails.

    Args:
        simulator: its expert demonstrates; used by one episode at a time.
        tasks: names of the tasks; all that the simulator has if empty.
        episodes_per_task: number of episodes of each.
        split: of the trials' seeds; "train" keeps them apart from evaluation.
        record_hz: frames per second; the simulator's control rate must be a multiple of it.
        views: cameras to record; the simulator's own choice if left out.
        hold_seconds: how long an episode continues after the expert's last action, which is held.
        max_attempts: scenes tried for one episode.
        shift: what the scenes differ in from the simulator's usual ones, drawn per episode (domain
            randomisation); the drawn values go into the episode's provenance.

    Raises:
        ValueError: an argument out of range; the message says what is possible.
    """

    def __init__(
        self,
        simulator: Simulator,
        tasks: Sequence[str] = (),
        episodes_per_task: int = 100,
        split: str = "train",
        record_hz: float = 5.0,
        views: Sequence[str] | None = None,
        hold_seconds: float = 0.8,
        max_attempts: int = 20,
        shift: Shift | None = None,
    ) -> None:
        self.simulator = _shifted(simulator, shift)
        self.tasks = tuple(tasks) or tuple(simulator.tasks())
        self.episodes_per_task, self.split, self.max_attempts = episodes_per_task, split, max_attempts
        self.record_hz, self.hold_seconds = record_hz, hold_seconds
        self.views = None if views is None else tuple(views)
        self._variations = _variations(simulator, self.tasks)
        self._stride = _stride(simulator.control_hz, record_hz)
        if episodes_per_task < 1 or max_attempts < 1 or hold_seconds < 0:
            raise InvalidValue(
                f"Demonstrations: episodes_per_task {episodes_per_task} and max_attempts {max_attempts} "
                f"must be >= 1, hold_seconds {hold_seconds} >= 0"
            )

    @property
    def card(self) -> SourceCard:
        """What the data card of the shards says of this source."""
        return SourceCard(title=f"Demonstrations in {type(self.simulator).__name__}")

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.tasks) * self.episodes_per_task

    def __getitem__(self, index: int) -> Episode:
        """Demonstrate episode `index`.

        Raises:
            IndexError: no such episode.
            RuntimeError: the expert failed in every attempt.
        """
        if not 0 <= index < len(self):
            raise InvalidIndex(f"Demonstrations: episode {index} of {len(self)}")
        crash: SimulatorCrash | None = None
        for attempt in range(self.max_attempts):
            trial = self.trial(index, attempt)
            try:
                instructions, frames = self.simulator.reset(trial), self._record()
            except SimulatorCrash as error:
                log.warning("%s: %s", trial.id, error)
                crash, frames = error, None
            if frames is not None:
                provenance = self._provenance(trial, attempt + 1)
                return Episode(trial.id, frames, instructions, self.record_hz, provenance)
        raise LostEpisode(
            f"Demonstrations: the expert of {trial.task!r} (variation {trial.variation}) failed in all "
            f"{self.max_attempts} scenes of episode {index}, the last being {trial.id}; "
            f"raise max_attempts or look at that scene"
        ) from crash

    def trial(self, index: int, attempt: int = 0) -> Trial:
        """The trial whose scene an attempt at an episode uses."""
        number, position = divmod(index, len(self.tasks))
        task = self.tasks[position]
        turn, variation = divmod(number, self._variations[task])
        return Trial(task, variation, turn * self.max_attempts + attempt, self.split)

    def _record(self) -> tuple[Frame, ...] | None:
        """Frames of one demonstration; None if it did not end in success."""
        frames, success = [self._frame(self.simulator.pose())], False
        for taken, action in enumerate(self._actions(), start=1):
            result = self.simulator.step(action)
            success = result.success
            if result.failed:
                return None
            if taken % self._stride == 0:
                frames.append(self._frame(action))
        return tuple(frames) if success else None

    def _actions(self) -> Iterator[Float[np.ndarray, "8"]]:
        """The expert's actions, then its last one again until the hold is over and a frame is due."""
        action, taken = self.simulator.pose(), 0
        for action in self.simulator.demonstrate():
            taken += 1
            yield action
        hold = round(self.hold_seconds * self.simulator.control_hz)
        yield from repeat(action, hold + -(taken + hold) % self._stride)

    def _frame(self, command: Float[np.ndarray, "8"]) -> Frame:
        """The present frame; its action is the pose achieved and the openness commanded."""
        frame = self.simulator.observe(self.views)
        pose = self.simulator.pose()
        return replace(frame, action=np.concatenate([pose[:7], command[7:]]))

    def _provenance(self, trial: Trial, attempts: int) -> Mapping[str, Any]:
        return {
            "source": "demonstration",
            "simulator": class_path(getattr(self.simulator, "simulator", self.simulator)),
            **getattr(self.simulator, "settings", {}),
            **({"drawn": self.simulator.drawn} if isinstance(self.simulator, ShiftedSimulator) else {}),
            "task": trial.task,
            "variation": trial.variation,
            "trial": trial.id,
            "seed": trial.seed,
            "attempts": attempts,
        }


def _shifted(simulator: Simulator, shift: Shift | None) -> Simulator:
    """The simulator that builds the shifted scenes.

    Raises:
        ValueError: a part that belongs into tests, or that the simulator cannot build.
    """
    if shift is None:
        return simulator
    if unfit := sorted({"views", "instruction"} & set(shift.parts)):
        raise InvalidValue(
            f"Demonstrations: shift has {unfit}; a recording keeps all its views, and phrasings that "
            "training has are not held out any more: leave them to the protocol of a test"
        )
    return ShiftedSimulator(simulator, shift)


def _variations(simulator: Simulator, tasks: Sequence[str]) -> dict[str, int]:
    """Numbers of variations of the named tasks."""
    known = simulator.tasks()
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise InvalidValue(f"Demonstrations: tasks {unknown} are unknown; the simulator has {sorted(known)}")
    return {task: known[task] for task in tasks}


def _stride(control_hz: float, record_hz: float) -> int:
    """Control steps from one recorded frame to the next."""
    stride = round(control_hz / record_hz) if record_hz > 0 else 0
    if stride < 1 or abs(stride * record_hz - control_hz) > 1e-6:
        raise InvalidValue(
            f"Demonstrations: record_hz {record_hz} must divide the simulator's control_hz {control_hz}, "
            f"as {control_hz}, {control_hz / 2} or {control_hz / 4} do"
        )
    return stride
