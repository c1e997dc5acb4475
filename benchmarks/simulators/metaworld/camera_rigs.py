"""Meta-World's cameras: the published ones, and a rig of ours framed on the box where its tasks happen."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from benchmarks.simulator import WRIST
from benchmarks.simulators.camera_moves import Mount, Workspace, framed_mount, mount
from benchmarks.simulators.mujoco_changes import camera_mount, put_camera
from benchmarks.simulators.mujoco_graphics import mujoco

# Names of a rig's cameras, with those of the model whose place they take.
RIGS: Mapping[str, Mapping[str, str]] = {
    "published": {
        **{name: name for name in ("corner", "corner2", "corner3", "corner4", "topview")},
        WRIST: "gripperPOV",
    },
    "framed": {
        "left_shoulder": "corner",
        "right_shoulder": "corner2",
        "overhead": "topview",
        WRIST: "gripperPOV",
    },
}
# Published cameras that hang upside down: they are turned about their optical axes.
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
# Experts' hands leave this box only at the ends of `door_close`, `sweep` and `lever_pull`.
REGION = Workspace((-0.4, 0.4, 0.0), (0.4, 0.9, 0.45))
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
    corners = REGION.corners
    beside, above = np.array((_AXIS, 0, 0)), np.array((0, 0, _AXIS))
    return np.concatenate([corners - beside, corners + beside, corners + above])  # symmetric: level pictures


def framed_mounts() -> dict[str, Mount]:
    """The fixed cameras of the framed rig, by view."""
    points, middle = framed_points(), REGION.middle
    return {name: framed_mount(middle + np.array(way), points) for name, way in _DIRECTIONS.items()}


def install(model: "mujoco.MjModel", rig: str) -> None:
    """Put a rig's cameras into a model that has the published ones."""
    if rig == "framed":
        for name, place in framed_mounts().items():
            put_camera(model, RIGS[rig][name], place)
        return
    for name in _UPSIDE_DOWN:
        hanging = camera_mount(model, name)
        right, up = -np.array(hanging.right), -np.array(hanging.up)
        put_camera(model, name, mount(np.array(hanging.position), right, up, hanging.fov))


def mounts(model: "mujoco.MjModel", rig: str) -> dict[str, Mount]:
    """The fixed cameras of a model into which a rig was installed, by view."""
    return {view: camera_mount(model, name) for view, name in RIGS[rig].items() if view != WRIST}
