"""Meta-World's cameras: the published ones, and a rig of ours framed on the box where its tasks happen."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from benchmarks.simulator import WRIST
from benchmarks.simulators.camera_moves import Mount, framed_mount
from benchmarks.simulators.mujoco_graphics import mujoco

# Names of a rig's cameras, with those of the model whose place they take.
RIGS: Mapping[str, Mapping[str, str]] = {
    "published": {
        name: name for name in ("corner", "corner2", "corner3", "corner4", "topview", "gripperPOV")
    },
    "framed": {
        "left_shoulder": "corner",
        "right_shoulder": "corner2",
        "overhead": "topview",
        WRIST: "gripperPOV",
    },
}
# Published cameras that hang upside down: picture and camera are turned about the optical axis.
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
# Experts' hands leave this box only at the ends of `door_close`, `sweep` and `lever_pull`.
LOW, HIGH = np.array([-0.4, 0.4, 0.0]), np.array([0.4, 0.9, 0.45])
_AXIS = 0.1  # metres from the hand to an action image's other points: towards -x, and upwards
# From the middle of the box to the camera, metres; the arm stands at y = 0 and reaches towards y = 1. None
# looks from the front: doors, drawers and buttons face the arm, and their boxes would hide the hand.
_DIRECTIONS: Mapping[str, tuple[float, float, float]] = {
    "left_shoulder": (-1.9, -0.77, 0.87),
    "right_shoulder": (1.9, -0.77, 0.87),
    "overhead": (0.0, 0.35, 2.2),
}


def framed_points() -> Float[np.ndarray, "n 3"]:
    """Points that framed cameras must show: the box, and an action image's points for poses in it."""
    corners = np.array(list(product(*zip(LOW, HIGH, strict=True))))
    beside, above = np.array((_AXIS, 0, 0)), np.array((0, 0, _AXIS))
    return np.concatenate([corners - beside, corners + beside, corners + above])  # symmetric: level pictures


def framed_mounts() -> dict[str, Mount]:
    """The fixed cameras of the framed rig."""
    points, middle = framed_points(), (LOW + HIGH) / 2
    return {name: framed_mount(middle + np.array(way), points) for name, way in _DIRECTIONS.items()}


def install(model: Any, rig: str) -> None:
    """Put a rig's cameras into a model; the published ones are there."""
    if rig != "framed":
        return
    for name, mount in framed_mounts().items():
        camera, rotation = model.camera(RIGS[rig][name]).id, np.empty(4)
        axes = np.stack([mount.right, mount.up, np.cross(mount.right, mount.up)], axis=1)
        mujoco.mju_mat2Quat(rotation, axes.ravel())
        model.cam_pos[camera], model.cam_quat[camera] = mount.position, rotation
        model.cam_fovy[camera] = mount.fov


def upright(
    rig: str, view: str, image: UInt8[np.ndarray, "h w 3"], world_from_camera: Float[np.ndarray, "4 4"]
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "4 4"]]:
    """Picture and camera of a view, turned by 180 degrees where the published camera hangs upside down.

    The intrinsics stay as they are, since the principal point is in the middle.
    """
    if rig != "published" or view not in _UPSIDE_DOWN:
        return image, world_from_camera
    return np.ascontiguousarray(image[::-1, ::-1]), world_from_camera @ np.diag([-1.0, -1.0, 1.0, 1.0])
