"""The contract of simulators, and the trials that run in them."""

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Frame
from ai_wam.errors import CannotContinue, InvalidValue

if TYPE_CHECKING:
    Action = Float[np.ndarray, "8"]
    Actions = Iterator[Action]
else:
    # A jaxtyping type equals itself only. The command line compares a simulator's signatures with the
    # protocol's and would refuse every simulator that spells the type out; nothing here is ever called, so no
    # check is lost.
    Action = Actions = Any


@dataclass(frozen=True)
class Trial:
    """One scene of a task, to be solved once.

    Attributes:
        task: name of the task.
        variation: which of the task's variations.
        index: number of the scene within (split, task, variation).
        split: scenes of different splits never share a seed: "train" for demonstrations, "test" for
            evaluation.
    """

    task: str
    variation: int
    index: int
    split: str = "test"

    @property
    def id(self) -> str:
        """A name made of all attributes, usable as a file name."""
        return f"{self.split}-{self.task}-v{self.variation:02d}-{self.index:05d}"

    @classmethod
    def from_id(cls, name: str) -> "Trial":
        """The inverse of `id`.

        Raises:
            ValueError: a name of another form.
        """
        match = re.fullmatch(r"([^-]+)-(.+)-v(\d{2,})-(\d{5,})", name)
        if match is None:
            raise InvalidValue(
                f"{name!r} is no trial's name; they look like {cls('reach_target', 0, 7).id!r}"
            )
        return cls(match[2], int(match[3]), int(match[4]), match[1])

    @property
    def seed(self) -> int:
        """A stable 32-bit hash of the name, equal everywhere and for every policy, so trials are paired."""
        return int.from_bytes(hashlib.blake2b(self.id.encode(), digest_size=4).digest(), "little")


@dataclass(frozen=True)
class StepResult:
    """The result of one control step.

    Attributes:
        success: the task's goal is reached.
        failed: the goal can no longer be reached (the wrong object was touched).
        reached: the commanded pose could be followed; False when inverse kinematics found no solution.
    """

    success: bool
    failed: bool
    reached: bool

    @property
    def done(self) -> bool:
        """Whether the trial is decided."""
        return self.success or self.failed


def checked_action(action: Action, owner: str) -> Action:
    """A copy of the action in float64, after checking its shape and numbers.

    Args:
        action: x y z (metres, world frame), quaternion x y z w of any non-zero length, openness.
        owner: the simulator's name, for the message.

    Raises:
        ValueError: of another shape, not finite, or without an orientation.
    """
    checked = np.array(action, dtype=np.float64)
    what = "an action is x y z (metres), quaternion x y z w, openness in [0, 1]"
    if checked.shape != (8,):
        raise InvalidValue(f"{owner}.step: action has shape {checked.shape}, expected (8,): {what}")
    if not np.isfinite(checked).all() or np.linalg.norm(checked[3:7]) < 1e-6:
        raise InvalidValue(f"{owner}.step: action {checked} is not finite or has no orientation: {what}")
    return checked


def check_trial(trial: Trial, variations: Mapping[str, int], owner: str, listed: str) -> None:
    """Refuse a trial of a task or variation that there is not.

    Args:
        trial: the trial.
        variations: number of variations by task.
        owner: the simulator's name, for the message.
        listed: file that lists the tasks, for the message.

    Raises:
        ValueError: the message has the names most like the unknown one, or the possible variations.
    """
    if trial.task not in variations:
        near = difflib.get_close_matches(trial.task, variations, n=5, cutoff=0.5)
        meant = f"did you mean one of {near}?" if near else f"{listed} lists them"
        raise InvalidValue(f"{owner} has no task {trial.task!r} among its {len(variations)}; {meant}")
    check_variation(trial, variations[trial.task])


def check_variation(trial: Trial, variations: int) -> None:
    """Refuse a trial of a variation that its task does not have.

    Args:
        trial: the trial.
        variations: number of the task's variations.

    Raises:
        ValueError: the message has the possible ones.
    """
    if not 0 <= trial.variation < variations:
        raise InvalidValue(
            f"variation {trial.variation} of task {trial.task!r} is unknown: it has 0 to {variations - 1}"
        )


def check_views(views: Sequence[str], known: Sequence[str], owner: str) -> None:
    """Refuse cameras that a simulator does not have.

    Args:
        views: names of cameras.
        known: the simulator's cameras.
        owner: the simulator's name, for the message.

    Raises:
        ValueError: the message lists the known ones.
    """
    if unknown := [view for view in views if view not in known]:
        raise InvalidValue(f"{owner}: views {unknown} are unknown; the cameras are {list(known)}")


def fingerprint(state: Float[np.ndarray, "..."]) -> str:
    """A short hash of a scene's state, rounded to thousandths; the same on every machine."""
    rounded = np.round(np.asarray(state, dtype=np.float64), 3) + 0.0  # no negative zeros
    return hashlib.blake2b(rounded.tobytes(), digest_size=8).hexdigest()


WRIST = "wrist"  # the camera that rides on the hand, wherever there is one
CHANGED = "changed"  # beginning of the fingerprint of a scene that was not restored as it had been


class SimulatorCrash(CannotContinue):
    """The simulator lost the trial: it crashed, hung or could not set it up. The next `reset` starts anew."""


@runtime_checkable
class Simulator(Protocol):
    """A simulator that runs one trial at a time; copies of it (worlds) run several side by side."""

    control_hz: float
    cameras: tuple[str, ...]  # names of all that it has

    def tasks(self) -> Mapping[str, int]:
        """Names of the tasks with their numbers of variations."""
        ...

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """Build the trial's scene; returns its instructions (phrasings of one command).

        Raises:
            ValueError: unknown task or variation; the message lists the known ones.
            SimulatorCrash: the scene cannot be built. Where a simulator runs in a process of its own, every
                call below may raise it too.
        """
        ...

    def scene(self) -> str:
        """Fingerprint of the scene that the last `reset` built; a reset to the same trial keeps it."""
        ...

    def observe(self, views: Sequence[str] | None = None) -> Frame:
        """Render the named cameras (all of them if left out) and read the pose.

        Returns:
            Images, K and world_from_camera per view, the tool's pose and openness, and simulated seconds.
        """
        ...

    def pose(self) -> Action:
        """The tool's pose (world frame) and openness now, without rendering."""
        ...

    def step(self, action: Action) -> StepResult:
        """Follow an absolute action (world frame) for one control step."""
        ...

    def demonstrate(self) -> Actions:
        """The scripted expert's actions from the present state on, one per control step.

        The caller must step with each of them.
        """
        ...

    def diagnostics(self) -> Mapping[str, float]:
        """Task-specific metrics of the trial so far, averaged over trials in the results.

        Names end with the unit, such as "final_distance_m", where there is one.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Versions of the software in the simulator's own process, once started; empty if it has none."""
        ...

    def close(self) -> None:
        """Release the renderer."""
        ...


@runtime_checkable
class Shiftable(Protocol):
    """A simulator that can build scenes which differ from its usual ones; see `benchmarks.shifts`.

    Attributes:
        shift_parts: names of the parts of a shift that it can build.
    """

    shift_parts: frozenset[str]

    def check_shift(self, parts: Mapping[str, Any]) -> None:
        """Refuse ranges beyond what can be built.

        A limit that is known only once the simulator runs is checked by the first shifted `reset`.

        Args:
            parts: the parts by name.

        Raises:
            ValueError: the message names the range and its limit here.
        """
        ...

    def shift_definition(self) -> str:
        """Hash of the code that builds shifted scenes."""
        ...

    def shift_next(self, drawn: Mapping[str, Any]) -> None:
        """Build the next `reset`'s scene with drawn values, by part; without a call it is the usual one."""
        ...
