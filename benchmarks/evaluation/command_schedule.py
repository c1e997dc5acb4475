"""The commands of a chunk, one per control step, and the transition from one chunk to the next."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float

from ai_wam.errors import InvalidValue
from benchmarks.evaluation.controller import commands, hold_invalid, slerp


@dataclass(frozen=True)
class PlannedActions:
    """The actions of one row of a chunk.

    Attributes:
        actions: poses and openness at dt, 2 dt, ..., in the world frame.
        valid: False where the policy marks an action as unusable.
        position_std: metres per axis; None where the policy gives none.
        dt: seconds between two actions.
    """

    actions: Float[np.ndarray, "a 8"]
    valid: Bool[np.ndarray, "a"]
    position_std: Float[np.ndarray, "a"] | None
    dt: float


@dataclass(frozen=True)
class CommandSchedule:
    """Commands of a chunk, one per control step; number j is due at (j + 1) / control_hz.

    Attributes:
        poses: commanded poses and openness, in the world frame.
        goals: the action each step leads to; a held pose in the place of one that is not executed.
        begins: whether the step begins an action.
        invalid: whether that action is invalid.
        low_confidence: whether it is held because its standard deviation is above the protocol's limit.
        position_std: of that action, metres per axis; NaN where the policy gives none.
    """

    poses: Float[np.ndarray, "n 8"]
    goals: Float[np.ndarray, "n 8"]
    begins: Bool[np.ndarray, "n"]
    invalid: Bool[np.ndarray, "n"]
    low_confidence: Bool[np.ndarray, "n"]
    position_std: Float[np.ndarray, "n"]

    @classmethod
    def of(
        cls,
        planned: PlannedActions,
        start: Float[np.ndarray, "8"],
        last_valid: Float[np.ndarray, "8"],
        max_position_std: float | None,
        control_hz: float,
        steps: int,
    ) -> "CommandSchedule":
        """The commands of a chunk.

        Args:
            planned: the chunk's actions.
            start: pose and openness now.
            last_valid: pose and openness held in the place of actions before the first that is executed.
            max_position_std: metres; actions with a larger standard deviation are held like invalid ones.
                None: no limit.
            control_hz: control steps per second.
            steps: number of commands; the last pose is held past the last action.

        Raises:
            ValueError: a limit on standard deviations that the policy does not give.
        """
        std, low_confidence = planned.position_std, np.zeros(len(planned.actions), dtype=bool)
        if max_position_std is not None:
            if std is None:
                raise InvalidValue(
                    f"protocol: max_position_std is {max_position_std}, but the policy's chunks have no "
                    "position_std; set it to null or give ActionChunk.position_std"
                )
            low_confidence = planned.valid & ~(std <= max_position_std)
        actions, good = hold_invalid(last_valid, planned.actions, planned.valid & ~low_confidence)
        poses, targets = commands(start, actions, planned.dt, control_hz, steps)
        std = np.full(len(actions), np.nan) if std is None else std
        invalid = ~good & ~low_confidence
        begins = np.diff(targets, prepend=-1) > 0
        return cls(poses, actions[targets], begins, invalid[targets], low_confidence[targets], std[targets])

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, steps: slice | Bool[np.ndarray, "n"]) -> "CommandSchedule":
        return CommandSchedule(**{field.name: getattr(self, field.name)[steps] for field in fields(self)})

    def extrapolated(self, step: int) -> Float[np.ndarray, "8"]:
        """The command of a step; for the step past the end, the last command's motion continued uniformly.

        A chunk that ends in motion is not meant to stop, so holding its last pose would not continue it.
        """
        if step < len(self):
            return self.poses[step]
        before, last = self.poses[-2:][:1], self.poses[-1:]
        beyond = 2 * last - before
        beyond[:, 3:7] = slerp(before[:, 3:7], last[:, 3:7], np.full((1, 1), 2.0))
        beyond[:, 7] = last[:, 7]
        return beyond[0]

    def followed_by(self, later: "CommandSchedule") -> "CommandSchedule":
        """Both schedules one after the other; the later one's first step counts as beginning an action."""
        joined = {
            field.name: np.concatenate([getattr(self, field.name), getattr(later, field.name)])
            for field in fields(self)
        }
        if len(later):
            joined["begins"][len(self)] = True
        return CommandSchedule(**joined)
