"""One running physics world: the arm's controller around MuJoCo's model and data."""

import math

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop import panda
from benchmarks.simulators.tabletop.kinematics import Kinematics, Pose, matrix_to_wxyz, to_xyzw
from benchmarks.simulators.tabletop.mujoco_graphics import mujoco

_PHYSICS_STEP = 0.005  # seconds, at most


def substeps(control_hz: float) -> int:
    """Physics steps in one control step."""
    return math.ceil(1 / control_hz / _PHYSICS_STEP - 1e-9)


class World:
    """Arm, gripper and whatever a task put beside them.

    Attributes:
        model: tasks move their fixtures and paint their objects here.
        data: tasks read and set the state of their objects here.
        kinematics: of the arm, apart from this world.
    """

    def __init__(self, mjcf: str, control_hz: float) -> None:
        self.model = mujoco.MjModel.from_xml_string(mjcf)
        self.data = mujoco.MjData(self.model)
        self.kinematics = Kinematics()
        self.control_hz = control_hz
        count = substeps(control_hz)
        self._fractions = np.arange(1, count + 1)[:, None] / count
        self._tip = self.model.site("tip").id
        self._lag = np.concatenate([panda.DAMPING / panda.STIFFNESS, np.zeros(2)])
        speeds = np.concatenate([panda.MAX_SPEED, np.full(2, panda.FINGER_SPEED)])
        self._farthest = speeds / control_hz  # radians and metres per control step
        self._reference = np.concatenate([panda.HOME, np.full(2, panda.FINGER_TRAVEL)])
        self.openness = 1.0

    def reset(self) -> None:
        """Everything to the model's initial state, the arm at home with its gripper open."""
        mujoco.mj_resetData(self.model, self.data)
        self.place_arm(panda.HOME)

    def place_arm(self, joints: Float[np.ndarray, "7"]) -> None:
        """Put the arm at joint angles, at rest, gripper open, and update all poses."""
        self._reference = np.concatenate([joints, np.full(2, panda.FINGER_TRAVEL)])
        self.data.qpos[:9] = self.data.ctrl[:9] = self._reference
        self.openness = 1.0
        mujoco.mj_forward(self.model, self.data)

    def tip(self) -> Pose:
        """Where the tip is now."""
        quaternion = to_xyzw(matrix_to_wxyz(self.data.site_xmat[self._tip]))
        return Pose(self.data.site_xpos[self._tip].copy(), quaternion)

    def pose(self) -> Float[np.ndarray, "8"]:
        """The tip's pose and the openness last commanded.

        Commanded, not measured, as in recorded actions: fingers around a cup would read as half open, and a
        policy that repeats the present openness would let go of it.
        """
        position, quaternion = self.tip()
        return np.concatenate([position, quaternion, [self.openness]])

    def follow(self, target: Pose, openness: float) -> bool:
        """Steer towards a pose for one control step; without a solution the arm keeps its last reference.

        The reference moves no faster than the real robot's joints and fingers, so a distant target takes
        several steps.

        Returns:
            Whether the pose can be reached at all.
        """
        solution = self.kinematics.solve(target, self._reference[:7])
        self.openness = min(max(openness, 0.0), 1.0)
        goal = np.empty(9)
        goal[:7] = solution.joints if solution.reached else self._reference[:7]
        goal[7:] = self.openness * panda.FINGER_TRAVEL
        move = goal - self._reference
        # All joints slow down together, or the tip would leave its straight way.
        move[:7] /= max(1.0, float((np.abs(move[:7]) / self._farthest[:7]).max()))
        move[7:] = np.minimum(np.maximum(move[7:], -self._farthest[7:]), self._farthest[7:])
        # A servo with damping trails a moving reference by damping / stiffness seconds: aim that much ahead.
        ahead = move * self.control_hz * self._lag
        servo = self.data.ctrl[:9]
        for command in self._reference + ahead + self._fractions * move:
            servo[:] = command
            mujoco.mj_step(self.model, self.data)
        self._reference = self._reference + move
        self.refresh()
        return solution.reached

    def refresh(self) -> None:
        """Poses of bodies and cameras for the present state; stepping leaves those of the step before."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def touches(self, one: str, other: str) -> bool:
        """Whether a geom of body `one` touches a geom of body `other`."""
        bodies = {self.model.body(one).id, self.model.body(other).id}
        geoms = self.data.contact.geom
        return any(set(pair) == bodies for pair in self.model.geom_bodyid[geoms].tolist())
