"""One of Meta-World's environments driven by absolute poses."""

import math
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.metaworld.library import Library
from benchmarks.simulators.metaworld.task_list import published_name
from benchmarks.simulators.mujoco_graphics import mujoco

CONTROL_HZ = 80.0  # published: five physics steps of 2.5 ms
# The hand's fixed orientation as x y z w: z points down, y along the fingers' travel.
DOWN = np.array([0.0, 1.0, 0.0, 0.0])
MAX_TURN = math.radians(30)  # the hand itself leans by up to 14 degrees when it accelerates or pushes
MAX_OUTSIDE = 0.02  # metres; a control step moves the hand by up to 1 cm along each axis
_GAIN = 100.0  # published action per metre: an action of 1 moves the mark that pulls the hand by 1 cm
_DAMPING = 2.0  # steps; without it a hand that is to stay swings by 2.5 cm
_STARTS = np.array([-0.3, 0.45, 0.08]), np.array([0.3, 0.85, 0.35])  # corners of the box of random starts
_EXPERT_STEPS = 500  # published length of an episode
_AFTERWARDS = 20  # control steps of the expert after success, so that a replay has a margin


class TaskWorld:
    """An environment, its latest observation and whether the task was solved.

    Attributes:
        model: MuJoCo's model.
        data: MuJoCo's data.
        openness: last commanded.
        solved: success was reached at any step since the reset, as published rates count it.
    """

    def __init__(self, library: Library, task: str) -> None:
        name = published_name(task)
        kind = library.environments[name]
        self._expert = library.experts[name]
        self._environment = kind()
        described = {"env_cls": kind, "rand_vec": None, "partially_observable": False}
        self._environment.set_task(library.task_type(env_name=name, data=pickle.dumps(described)))
        self._environment.max_path_length = sys.maxsize  # a test's protocol limits the time
        self.model, self.data = self._environment.model, self._environment.data
        self._begin()

    def reset(self, seed: int, start: Float[np.ndarray, "3"] | None = None) -> None:
        """Draw the scene of a seed and build it as the environment builds a published task.

        Meta-World draws a scene while it builds one, from the scene before, and some tasks then differ from a
        published one. So the first scene only gives the draw, and the second is built from the frozen draw.

        Args:
            seed: of the draw.
            start: where the hand begins, before there are objects; the task's own place if left out.
        """
        environment = self._environment
        environment.np_random = np.random.default_rng(seed)
        environment.seeded_rand_vec, environment._freeze_rand_vec = True, False
        environment.reset_model()
        environment._freeze_rand_vec = True
        published = environment.hand_init_pos
        environment.hand_init_pos = published if start is None else start
        try:
            self._observation, _ = environment.reset()
        finally:
            environment.hand_init_pos = published
        mujoco.mj_kinematics(self.model, self.data)  # not mj_forward, which would warm up the solver
        mujoco.mj_camlight(self.model, self.data)
        self._begin()

    def _begin(self) -> None:
        self.openness, self.solved = 1.0, False
        self._info: Mapping[str, Any] = {}
        self._before = self._commanded = self._hand()

    def state(self) -> Float[np.ndarray, "n"]:
        """Positions of all joints, bodies and marks, and what was drawn."""
        drawn = self._environment._last_rand_vec
        parts = (self.data.qpos, self.data.geom_xpos, self.data.site_xpos, drawn)
        return np.concatenate([np.ravel(part) for part in parts])

    def pose(self) -> Float[np.ndarray, "8"]:
        """Position and orientation of the hand, and the openness last commanded."""
        return np.concatenate([self._hand(), self._orientation(), [self.openness]])

    def follow(self, action: Float[np.ndarray, "8"]) -> bool:
        """Move towards a pose for one control step.

        The published action is proportional to the hand's distance from the pose, and damped by how much
        faster it moves than the poses do.

        Returns:
            Whether the hand can be there: within the environment's limits, and turned as it always is.
        """
        position, quaternion = action[:3], action[3:7] / np.linalg.norm(action[3:7])
        self.openness = float(np.clip(action[7], 0, 1))
        hand = self._hand()
        faster = (hand - self._before) - (position - self._commanded)
        move = np.clip(_GAIN * (position - hand - _DAMPING * faster), -1, 1)
        self._before, self._commanded = hand, position
        effort = 1 - 2 * self.openness
        self._observation, _, _, _, self._info = self._environment.step(np.array([*move, effort]))
        self.solved = self.solved or bool(self._info["success"])
        inside = np.clip(position, self._environment.mocap_low, self._environment.mocap_high)
        turn = 2 * math.acos(min(1.0, abs(float(quaternion @ DOWN))))
        return bool(np.linalg.norm(position - inside) <= MAX_OUTSIDE and turn <= MAX_TURN)

    def expert(self) -> Iterator[Float[np.ndarray, "8"]]:
        """The scripted expert's moves as poses to go to, until shortly after success or for 500 steps."""
        expert, remaining = self._expert(), _AFTERWARDS
        for _ in range(_EXPERT_STEPS):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high")  # clipped here as well
                published = np.clip(expert.get_action(self._observation), -1.0, 1.0).astype(np.float64)
            yield np.concatenate([self._pose_of(published[:3]), DOWN, [(1 - published[3]) / 2]])
            remaining -= self.solved
            if not remaining:
                return

    def _pose_of(self, move: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """The position that `follow` turns into a published action."""
        hand = self._hand()
        damped = hand - self._before + self._commanded
        return (move / _GAIN + hand + _DAMPING * damped) / (1 + _DAMPING)

    def diagnostics(self) -> Mapping[str, float]:
        """Meta-World's own figures after the last step; NaN before the first."""
        names = {"near_object": "near_object", "obj_to_target": "obj_to_target", "reward": "unscaled_reward"}
        return {ours: float(self._info.get(name, math.nan)) for ours, name in names.items()}

    def close(self) -> None:
        """Release what the environment holds."""
        self._environment.close()

    def _hand(self) -> Float[np.ndarray, "3"]:
        return np.array(self._environment.get_endeff_pos())

    def _orientation(self) -> Float[np.ndarray, "4"]:
        """Of a tool frame with z out of the hand and y along the fingers' travel, as in other simulators."""
        x, y, z = self.data.body("hand").xmat.reshape(3, 3).T  # Meta-World's hand points along its x axis
        w, *vector = _quaternion(np.stack([-z, y, x], axis=1))
        quaternion = np.array([*vector, w])
        return quaternion if quaternion @ DOWN >= 0 else -quaternion


def random_start(seed: int) -> Float[np.ndarray, "3"]:
    """Where the hand begins in a trial of this seed, if it begins at random; metres."""
    low, high = _STARTS
    return np.random.default_rng([seed, 1]).uniform(low, high)


def _quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """MuJoCo's quaternion, w first."""
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    return quaternion
