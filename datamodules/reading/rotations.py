"""Converts rotations of other data sets' conventions to quaternions x y z w."""

from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from ai_wam.poses import continuous_quaternions, quaternion_from_rotation, rotation_from_vector

Rotation = Literal[
    "quaternion_xyzw",
    "quaternion_wxyz",
    "euler_xyz",
    "euler_xyz_degrees",
    "rotation_vector",
    "rotation_vector_degrees",
    "matrix",
]
_WIDTH = {"quaternion_xyzw": 4, "quaternion_wxyz": 4, "euler_xyz": 3, "rotation_vector": 3, "matrix": 9}
_DEGREES = "_degrees"
_LARGEST = 2 * np.pi + 0.1  # radians: whole turns, and what a filter may overshoot


def to_quaternion(
    values: Float[np.ndarray, "t n"], written_as: Rotation, at: str
) -> Float[np.ndarray, "t 4"]:
    """Unit quaternions x y z w.

    Args:
        values: one rotation per row.
        written_as: quaternions; Euler angles about the fixed x, then y, then z axis (roll, pitch, yaw); axis
            times angle; or a matrix row by row. Angles are radians, or degrees where the name says so.
        at: where they come from, for the error.

    Raises:
        ValueError: rows of another length, quaternions far from length 1, matrices that do not rotate, or
            angles of more than a turn where radians are expected.
    """
    if written_as.endswith(_DEGREES):
        values, written_as = np.radians(values), cast("Rotation", written_as.removesuffix(_DEGREES))
    width = _WIDTH[written_as]
    if values.shape[1] != width:
        raise InvalidValue(
            f"{at}: {values.shape[1]} numbers per rotation, {written_as} has {width}; correct it"
        )
    if written_as in ("quaternion_xyzw", "quaternion_wxyz"):
        return _unit(values if written_as == "quaternion_xyzw" else values[:, [1, 2, 3, 0]], at)
    if written_as == "matrix":
        return quaternion_from_rotation(torch.from_numpy(_proper(values.reshape(-1, 3, 3), at))).numpy()
    if written_as == "rotation_vector":
        _check_radians(values, at)
        return quaternion_from_rotation(rotation_from_vector(torch.from_numpy(values))).numpy()
    return quaternion_from_rotation(torch.from_numpy(euler_xyz(values, at))).numpy()


def continuous_actions(actions: Float[np.ndarray, "t 8"]) -> Float[np.ndarray, "t 8"]:
    """The same actions with quaternions whose signs do not jump (`ai_wam.poses.continuous_quaternions`)."""
    turned = continuous_quaternions(torch.from_numpy(np.array(actions[:, 3:7]))).numpy()
    return np.concatenate([actions[:, :3], turned, actions[:, 7:]], axis=1)


def euler_xyz(angles: Float[np.ndarray, "t 3"], at: str) -> Float[np.ndarray, "t 3 3"]:
    """Rotation matrices of roll, pitch, yaw: about the fixed x, then y, then z axis, radians.

    Raises:
        ValueError: angles of more than a turn; `at` says where they come from.
    """
    _check_radians(angles, at)
    axes = torch.from_numpy(angles)[..., None] * torch.eye(3, dtype=torch.float64)  # t axis 3
    x, y, z = rotation_from_vector(axes).unbind(1)
    return (z @ y @ x).numpy()


def pose_from_xyz_euler(values: Float[np.ndarray, "t 6"], at: str) -> Float[np.ndarray, "t 4 4"]:
    """Rigid matrices of x y z, roll pitch yaw; errors as in `euler_xyz`."""
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = euler_xyz(values[:, 3:], at), values[:, :3]
    return poses


def _check_radians(angles: Float[np.ndarray, "t 3"], at: str) -> None:
    size = np.abs(angles).max(axis=1)
    if (size > _LARGEST).any():
        row = int((size > _LARGEST).argmax())
        raise InvalidValue(
            f"{at}, frame {row}: angles {angles[row].tolist()} are more than a turn in radians; if they are "
            "degrees, add _degrees to the source's rotation_as, or write radians"
        )


def _unit(quaternions: Float[np.ndarray, "t 4"], at: str) -> Float[np.ndarray, "t 4"]:
    lengths = np.linalg.norm(quaternions, axis=1)
    if np.abs(lengths - 1).max() > 1e-2:
        row = int(np.abs(lengths - 1).argmax())
        raise InvalidValue(
            f"{at}, frame {row}: quaternion {quaternions[row].tolist()} has length {lengths[row]:.6g}, "
            "expected 1; is this how the rotation is written?"
        )
    return quaternions / lengths[:, None]


def _proper(matrices: Float[np.ndarray, "t 3 3"], at: str) -> Float[np.ndarray, "t 3 3"]:
    off = np.abs(matrices @ matrices.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
    bad = (off > 1e-2) | (np.linalg.det(matrices) < 0)
    if bad.any():
        row = int(bad.argmax())
        raise InvalidValue(
            f"{at}, frame {row}: {matrices[row].tolist()} is no rotation; is it written row by row?"
        )
    return matrices
