"""Building blocks of scripted experts' motions: one absolute action per control step."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop.kinematics import Pose, to_wxyz, to_xyzw
from benchmarks.simulators.tabletop.mujoco_graphics import mujoco

DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # straight down, the fingers moving along the world's y


def duration(start: Pose, goal: Pose, speed: float, shortest: float, longest: float) -> float:
    """Seconds for the way between two poses at a mean speed in m/s, within limits."""
    return min(max(float(np.linalg.norm(goal.position - start.position)) / speed, shortest), longest)


def min_jerk(fraction: float) -> float:
    """Fraction of the way covered after a fraction of the time, starting and ending at rest."""
    return fraction**3 * (10 + fraction * (6 * fraction - 15))


def straight(start: Pose, goal: Pose, openness: float, steps: int) -> Iterator[Float[np.ndarray, "8"]]:
    """A straight minimum-jerk move of the tip, turning about one fixed axis on the way."""
    turn = np.empty(3)
    first = to_wxyz(start.quaternion)
    mujoco.mju_subQuat(turn, to_wxyz(goal.quaternion), first)
    for step in range(1, steps + 1):
        share = min_jerk(step / steps)
        quaternion = first.copy()
        mujoco.mju_quatIntegrate(quaternion, turn, share)
        position = start.position + share * (goal.position - start.position)
        yield action(Pose(position, to_xyzw(quaternion)), openness)


class Leg(NamedTuple):
    """One straight part of an expert's motion.

    Attributes:
        goal: pose of the tip at its end, world frame.
        openness: of the gripper, constant.
        seconds: its duration.
    """

    goal: Pose
    openness: float
    seconds: float


def through(start: Pose, legs: Sequence[Leg], control_hz: float) -> Iterator[Float[np.ndarray, "8"]]:
    """One leg after the other, at rest in between; each begins at the goal of the leg before."""
    for leg in legs:
        yield from straight(start, leg.goal, leg.openness, math.ceil(leg.seconds * control_hz - 1e-9))
        start = leg.goal


def action(pose: Pose, openness: float) -> Float[np.ndarray, "8"]:
    """Pose and openness as one vector."""
    return np.concatenate([pose.position, pose.quaternion, [openness]])


def turned(
    quaternion: Float[np.ndarray, "4"], axis: Float[np.ndarray, "3"], angle: float
) -> Float[np.ndarray, "4"]:
    """A rotation (quaternion x y z w) followed by `angle` radians about a world axis of unit length."""
    turn, product = np.empty(4), np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, np.asarray(axis, dtype=np.float64), angle)
    mujoco.mju_mulQuat(product, turn, to_wxyz(quaternion))
    return to_xyzw(product)


def distance_to_segment(
    point: Float[np.ndarray, "3"], start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"]
) -> float:
    """Metres from a point to the nearest point of a segment."""
    along = end - start
    share = np.clip((point - start) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
    return float(np.linalg.norm(point - start - share * along))
