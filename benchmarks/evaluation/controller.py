"""Interpolates a chunk of actions to one command per control step.

Actions of a chunk are due at dt, 2 dt, ... after the pose at which it was planned. In between, positions and
openness change linearly and rotations along the shortest arc (slerp); after the last action its pose is held.
Openness is linear because it is a measured, continuous quantity: a gripper that thresholds it at 1/2 then
switches midway between the two actions, which is the least wrong place for a switch somewhere in between.
"""

from math import floor

import numpy as np
from jaxtyping import Bool, Float, Int

_ROUNDING = 1e-6  # a time this close to an action (in units of dt) is that action's


def hold_invalid(
    start: Float[np.ndarray, "8"], actions: Float[np.ndarray, "a 8"], valid: Bool[np.ndarray, "a"]
) -> tuple[Float[np.ndarray, "a 8"], Bool[np.ndarray, "a"]]:
    """Replace invalid actions by the last valid pose (`start` before the first one).

    Args:
        start: the pose the chunk was planned from, or the last valid one commanded before.
        actions: poses and openness; the quaternions may have any non-zero length.
        valid: False where the policy marks an action as unusable.

    Returns:
        The actions with unit quaternions and openness in [0, 1], and which of them were valid: numbers that
        are not finite and quaternions without a direction never are.
    """
    lengths = np.linalg.norm(np.nan_to_num(actions[:, 3:7]), axis=1)
    good = valid & np.isfinite(actions).all(axis=1) & (lengths > 1e-6)
    held = np.empty((len(actions), 8))
    last = start
    for index, ok in enumerate(good):
        if ok:
            last = actions[index].astype(np.float64)
            last[3:7] /= lengths[index]
            last[7] = np.clip(last[7], 0, 1)
        held[index] = last
    return held, good


def control_steps(frames: int, dt: float, control_hz: float) -> int:
    """Number of control steps that end no later than action number `frames`, at least 1."""
    return max(1, floor(frames * dt * control_hz + _ROUNDING))


def commands(
    start: Float[np.ndarray, "8"], actions: Float[np.ndarray, "a 8"], dt: float, control_hz: float, steps: int
) -> tuple[Float[np.ndarray, "n 8"], Int[np.ndarray, "n"]]:
    """The command of every control step: number j is the pose at time (j + 1) / control_hz.

    Args:
        start: pose and openness at time 0, unit quaternion.
        actions: poses and openness at dt, 2 dt, ...; unit quaternions.
        dt: seconds between two actions.
        control_hz: control steps per second.
        steps: how many commands to give; those past the last action hold it.

    Returns:
        The commands, and for each the index of the action it leads to (the last one's while it is held).
    """
    knots = np.concatenate([start[None], actions])
    times = np.arange(1, steps + 1) / (control_hz * dt)  # in units of dt
    target = np.clip(np.ceil(times - _ROUNDING).astype(int), 1, len(actions))
    fraction = np.clip(times - (target - 1), 0, 1)[:, None]
    before, after = knots[target - 1], knots[target]
    result = before + fraction * (after - before)
    result[:, 3:7] = slerp(before[:, 3:7], after[:, 3:7], fraction)
    return result, target - 1


def slerp(
    first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "n 4"], fraction: Float[np.ndarray, "n 1"]
) -> Float[np.ndarray, "n 4"]:
    """Unit quaternions at a fraction in [0, 1] of the shortest arc between unit quaternions."""
    cosine = (first * second).sum(axis=1, keepdims=True)
    second = np.where(cosine < 0, -second, second)  # q and -q are one rotation: take the near one
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    straight = angle < 1e-6  # sin(angle) vanishes, and the chord is the arc
    sine = np.where(straight, 1, np.sin(angle))
    a = np.where(straight, 1 - fraction, np.sin((1 - fraction) * angle) / sine)
    b = np.where(straight, fraction, np.sin(fraction * angle) / sine)
    blend = a * first + b * second
    return blend / np.linalg.norm(blend, axis=1, keepdims=True)
