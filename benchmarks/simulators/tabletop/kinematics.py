"""Forward and inverse kinematics of the Panda, on a model of its own: solving touches no running world."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.tabletop import panda
from benchmarks.simulators.tabletop.mujoco_graphics import mujoco

POSITION_TOLERANCE = 0.005  # metres; a solution further off counts as none
ROTATION_TOLERANCE = 0.05  # radians
_CONVERGED = 1e-4  # metres and radians: below the servo's own error, so iterating on is wasted time
_DAMPING = 0.03
_STEPS = 40
_DIAGONAL = np.diag_indices(6)
_POSITION_STEP, _ROTATION_STEP = 0.1, 0.4  # longest error one linearised step may chase


class Pose(NamedTuple):
    """The tip in the world frame: position in metres, quaternion x, y, z, w."""

    position: Float[np.ndarray, "3"]
    quaternion: Float[np.ndarray, "4"]


class Solution(NamedTuple):
    """Joint angles in radians, and whether they put the tip within the tolerances of the pose asked for."""

    joints: Float[np.ndarray, "7"]
    reached: bool


class Kinematics:
    """Damped least squares with a pull towards the home configuration in the null space."""

    def __init__(self) -> None:
        xml = (
            f'<mujoco><compiler angle="radian"/><default>{panda.defaults()}</default>'
            f"<worldbody>{panda.body().format(wrist_camera='')}</worldbody></mujoco>"
        )
        self._model = mujoco.MjModel.from_xml_string(xml)
        self._data = mujoco.MjData(self._model)
        tip = self._model.site("tip").id
        self._tip = tip
        # Views of MuJoCo's memory: looking them up anew costs more than the mathematics.
        self._joints, self._position = self._data.qpos[:7], self._data.site_xpos[tip]
        self._matrix = self._data.site_xmat[tip]
        self._low, self._high = self._model.jnt_range[:7].T.copy()
        self._jacobian = np.zeros((6, self._model.nv))

    def pose(self, joints: Float[np.ndarray, "7"]) -> Pose:
        """Where the tip is at those joint angles."""
        self._place(joints)
        return Pose(self._position.copy(), to_xyzw(matrix_to_wxyz(self._matrix)))

    def solve(self, pose: Pose, start: Float[np.ndarray, "7"]) -> Solution:
        """Joint angles for a pose, near `start` if possible, else those found from the home configuration."""
        solution = self._descend(pose, start)
        return solution if solution.reached else self._descend(pose, panda.HOME)

    def _descend(self, pose: Pose, start: Float[np.ndarray, "7"]) -> Solution:
        target = to_wxyz(pose.quaternion)
        joints = np.minimum(np.maximum(start, self._low), self._high)
        error = self._error(pose.position, target, joints)
        for _ in range(_STEPS):
            if np.abs(error).max() < _CONVERGED:
                break
            joints = np.minimum(np.maximum(joints + self._step(error, joints), self._low), self._high)
            error = self._error(pose.position, target, joints)
        near = _length(error[:3]) < POSITION_TOLERANCE
        return Solution(joints, near and _length(error[3:]) < ROTATION_TOLERANCE)

    def _error(
        self, position: Float[np.ndarray, "3"], target: Float[np.ndarray, "4"], joints: Float[np.ndarray, "7"]
    ) -> Float[np.ndarray, "6"]:
        """Remaining translation and rotation vector, world frame."""
        self._place(joints)
        error = np.empty(6)
        error[:3] = position - self._position
        mujoco.mju_subQuat(error[3:], target, matrix_to_wxyz(self._matrix))  # in the tip's frame
        error[3:] = self._matrix.reshape(3, 3) @ error[3:]
        return error

    def _step(self, error: Float[np.ndarray, "6"], joints: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._tip)
        jacobian = self._jacobian[:, :7]
        home = 0.1 * (panda.HOME - joints)
        wanted = _shorten(error) - jacobian @ home
        normal = jacobian @ jacobian.T
        normal[_DIAGONAL] += _DAMPING**2 * min(1.0, _length(error) / 0.05)
        return home + jacobian.T @ np.linalg.solve(normal, wanted)

    def _place(self, joints: Float[np.ndarray, "7"]) -> None:
        self._joints[:] = joints
        mujoco.mj_kinematics(self._model, self._data)


def to_wxyz(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """MuJoCo's order from ours."""
    return np.array([quaternion[3], quaternion[0], quaternion[1], quaternion[2]], dtype=np.float64)


def to_xyzw(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """Our order from MuJoCo's, with w >= 0."""
    w, x, y, z = quaternion
    return np.array([x, y, z, w]) * (-1.0 if w < 0 else 1.0)


def matrix_to_wxyz(matrix: Float[np.ndarray, "9"]) -> Float[np.ndarray, "4"]:
    """MuJoCo's quaternion of a rotation matrix in row-major order."""
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, matrix)
    return quaternion


def _shorten(error: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
    """The error with translation and rotation limited to what one linearised step can chase."""
    shortened = error.copy()
    for part, limit in ((slice(0, 3), _POSITION_STEP), (slice(3, 6), _ROTATION_STEP)):
        length = _length(error[part])
        if length > limit:
            shortened[part] *= limit / length
    return shortened


def _length(vector: Float[np.ndarray, "n"]) -> float:
    return math.sqrt(vector @ vector)
