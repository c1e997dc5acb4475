"""Changes that shifts make to a MuJoCo model: its cameras and its light; and the way back."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.simulators.camera_moves import Mount, about, mount
from benchmarks.simulators.mujoco_graphics import Lamp, mujoco

WIDEST = 140.0  # degrees of a camera's field of view


class UsualModel:
    """A model's usual cameras and light, to which every reset returns.

    Args:
        model: MuJoCo's model before any shift.
        fields: names of further arrays of the model that shifts change.
    """

    def __init__(self, model: "mujoco.MjModel", fields: tuple[str, ...] = ()) -> None:
        lights = ("light_dir", "light_diffuse", "light_castshadow")
        names = ("cam_pos", "cam_quat", "cam_fovy", *lights, *fields)
        self._usual = {name: np.array(getattr(model, name)) for name in names}
        headlight = model.vis.headlight
        self._headlight = {name: np.array(getattr(headlight, name)) for name in ("ambient", "diffuse")}

    def restore(self, model: "mujoco.MjModel") -> None:
        """Undo every shift."""
        for name, value in self._usual.items():
            getattr(model, name)[...] = value
        for name, value in self._headlight.items():
            getattr(model.vis.headlight, name)[:] = value


def put_camera(model: "mujoco.MjModel", name: str, place: Mount) -> None:
    """Put a camera of the model somewhere else."""
    camera = model.camera(name).id
    axes = np.stack([place.right, place.up, np.cross(place.right, place.up)], axis=1)
    model.cam_pos[camera], model.cam_fovy[camera] = place.position, place.fov
    mujoco.mju_mat2Quat(model.cam_quat[camera], axes.ravel())


def camera_mount(model: "mujoco.MjModel", name: str) -> Mount:
    """Where a camera of the model is, in the frame of its body."""
    camera, axes = model.camera(name).id, np.empty(9)
    mujoco.mju_quat2Mat(axes, model.cam_quat[camera])
    right, up, _ = axes.reshape(3, 3).T
    return mount(model.cam_pos[camera], right, up, float(model.cam_fovy[camera]))


def light(model: "mujoco.MjModel", drawn: Mapping[str, Any]) -> tuple[Lamp, ...]:
    """Change a model's light by values of `benchmarks.shifts.parts.LightShift`.

    The model's own lights turn together and count as one lamp.

    Returns:
        The other lamps, to be drawn with the model's own.
    """
    rng, lamps = np.random.default_rng(drawn["seed"]), drawn["lamps"]
    brightness = np.array(drawn["tint"]) * drawn["strength"]
    each = model.light_diffuse.sum(axis=0) * brightness / lamps
    turn = _tilt(model.light_dir.mean(axis=0), drawn["tilt"], drawn["side"])
    model.light_dir[:] = model.light_dir @ turn.T
    model.light_diffuse[:] *= brightness / lamps
    if drawn["shadows"] is not None:
        model.light_castshadow[:] = drawn["shadows"]
    model.vis.headlight.ambient[:] *= brightness
    model.vis.headlight.diffuse[:] *= brightness
    down = np.array([0.0, 0.0, -1.0])
    return tuple(
        Lamp(_tilt(down, rng.uniform(10, 70), rng.uniform(0, 360)) @ down, each) for _ in range(1, lamps)
    )


def _tilt(direction: Float[np.ndarray, "3"], degrees: float, side: float) -> Float[np.ndarray, "3 3"]:
    """The rotation that turns a direction by an angle towards one of all sides."""
    unit = direction / np.linalg.norm(direction)
    across = np.cross(unit, (1.0, 0.0, 0.0))
    axis = about(unit, math.radians(side)) @ (across / np.linalg.norm(across))
    return about(axis, math.radians(degrees))
