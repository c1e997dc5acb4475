"""What a chunk has the arm do, control step by control step, and where one chunk gives way to the next."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float

from ai_wam.errors import InvalidValue
from benchmarks.evaluation.controller import commands, hold_invalid, slerp


@dataclass(frozen=True)
class Plan:
    """One row of a chunk.

    Attributes:
        actions: poses and openness at dt, 2 dt, ...
        valid: what the policy vouches for.
        position_std: metres per axis; None where the policy gives none.
        dt: seconds between two actions.
    """

    actions: Float[np.ndarray, "a 8"]
    valid: Bool[np.ndarray, "a"]
    position_std: Float[np.ndarray, "a"] | None
    dt: float


@dataclass(frozen=True)
class Schedule:
    """Commands of a chunk; number j is due at (j + 1) / control_hz.

    Attributes:
        poses: what is commanded.
        goals: the action each step leads to, held poses in the place of those not executed.
        begins: whether the step begins an action.
        invalid: whether the policy could not vouch for that action.
        vague: whether it is held because its standard deviation is too large.
        position_std: of that action, metres per axis; NaN where the policy gives none.
    """

    poses: Float[np.ndarray, "n 8"]
    goals: Float[np.ndarray, "n 8"]
    begins: Bool[np.ndarray, "n"]
    invalid: Bool[np.ndarray, "n"]
    vague: Bool[np.ndarray, "n"]
    position_std: Float[np.ndarray, "n"]

    @classmethod
    def of(
        cls,
        plan: Plan,
        start: Float[np.ndarray, "8"],
        last_valid: Float[np.ndarray, "8"],
        max_position_std: float | None,
        control_hz: float,
        steps: int,
    ) -> "Schedule":
        """The commands of a chunk.

        Args:
            plan: actions ahead.
            start: the pose now.
            last_valid: held in the place of actions before the first that is executed.
            max_position_std: metres; vaguer actions are held like invalid ones. None: none are.
            control_hz: control steps per second.
            steps: how many; the last pose is held past the last action.

        Raises:
            ValueError: a limit on standard deviations that the policy does not give.
        """
        std, vague = plan.position_std, np.zeros(len(plan.actions), dtype=bool)
        if max_position_std is not None:
            if std is None:
                raise InvalidValue(
                    f"protocol: max_position_std is {max_position_std}, but the policy's chunks have no "
                    "position_std; set it to null or give ActionChunk.position_std"
                )
            vague = plan.valid & ~(std <= max_position_std)
        actions, good = hold_invalid(last_valid, plan.actions, plan.valid & ~vague)
        poses, targets = commands(start, actions, plan.dt, control_hz, steps)
        std = np.full(len(actions), np.nan) if std is None else std
        invalid = ~good & ~vague
        begins = np.diff(targets, prepend=-1) > 0
        return cls(poses, actions[targets], begins, invalid[targets], vague[targets], std[targets])

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, steps: slice | Bool[np.ndarray, "n"]) -> "Schedule":
        return Schedule(**{field.name: getattr(self, field.name)[steps] for field in fields(self)})

    def going_on(self, step: int) -> Float[np.ndarray, "8"]:
        """The command of a step, or of the one past the end: there the last one's motion goes on.

        A chunk that ends in motion does not mean to stop, so to hold its last pose would be no continuation.
        """
        if step < len(self):
            return self.poses[step]
        before, last = self.poses[-2:][:1], self.poses[-1:]
        beyond = 2 * last - before
        beyond[:, 3:7] = slerp(before[:, 3:7], last[:, 3:7], np.full((1, 1), 2.0))
        beyond[:, 7] = last[:, 7]
        return beyond[0]

    def then(self, later: "Schedule") -> "Schedule":
        """This one, and then the end of a later chunk's, whose first step counts as beginning an action."""
        joined = {
            field.name: np.concatenate([getattr(self, field.name), getattr(later, field.name)])
            for field in fields(self)
        }
        if len(later):
            joined["begins"][len(self)] = True
        return Schedule(**joined)


def jump(old: Float[np.ndarray, "8"], new: Float[np.ndarray, "8"]) -> tuple[float, float]:
    """Millimetres and degrees between two commands."""
    cosine = min(1.0, abs(float((old[3:7] * new[3:7]).sum())))
    return 1000 * float(np.linalg.norm(new[:3] - old[:3])), 2 * float(np.degrees(np.arccos(cosine)))
