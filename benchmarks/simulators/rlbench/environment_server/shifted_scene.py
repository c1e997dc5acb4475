"""What a shift changes in CoppeliaSim's scene through PyRep: cameras, lamps, distractors; and how it was.

Every change is read back, so that a value that CoppeliaSim limits is an error and not another scene. PyRep
has no call that makes a lamp. Shadows belong to the renderer, not to a lamp: it draws those of all or none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pyrep.backend import sim
from pyrep.const import ObjectType, PrimitiveShape, RenderMode
from pyrep.objects.dummy import Dummy
from pyrep.objects.light import Light
from pyrep.objects.shape import Shape
from pyrep.objects.vision_sensor import VisionSensor

FIXED = {
    "front": "cam_front",
    "left_shoulder": "cam_over_shoulder_left",
    "right_shoulder": "cam_over_shoulder_right",
    "overhead": "cam_overhead",
}
_WRIST = "cam_wrist"
_CLEAR = 0.08  # metres between a distractor's centre and what stands beside it, at least
_TRIES = 500
_SHAPES = (PrimitiveShape.CUBOID, PrimitiveShape.SPHERE, PrimitiveShape.CYLINDER, PrimitiveShape.CONE)
# Far from the twenty colours that instructions of RLBench name.
COLOURS = (
    (0.4, 0.25, 0.13),
    (0.95, 0.8, 0.55),
    (0.95, 0.6, 0.5),
    (0.25, 0.35, 0.6),
    (0.7, 0.62, 0.3),
    (0.65, 0.5, 0.9),
)


@dataclass
class _Lamp:
    light: Light
    pose: np.ndarray
    matrix: np.ndarray
    diffuse: np.ndarray
    specular: np.ndarray


@dataclass
class _Sensor:
    sensor: VisionSensor
    pose: np.ndarray
    matrix: np.ndarray
    angle: float
    mode: RenderMode


class ShiftedScene:
    """The cameras, lamps and distractors of a launched scene; `read` comes before all other calls."""

    def __init__(self) -> None:
        self._sensors: dict[str, _Sensor] = {}
        self._lamps: list[_Lamp] = []
        self._ambient: list[float] = []
        self._undo: list[Callable[[], None]] = []
        self._distractors: list[Shape] = []

    def read(self, task: str | None) -> None:
        """Read the usual values, before the first change.

        Args:
            task: name of the root object of the task that is loaded, whose lamps go with it.
        """
        if self._sensors:
            return
        for name, own in {**FIXED, "wrist": _WRIST}.items():
            sensor = VisionSensor(own)
            self._sensors[name] = _Sensor(
                sensor,
                sensor.get_pose(),
                sensor.get_matrix(),
                sensor.get_perspective_angle(),
                sensor.get_render_mode(),
            )
        handles = sim.simGetObjectsInTree(sim.sim_handle_scene, ObjectType.LIGHT.value, 0)
        self._lamps = [
            _Lamp(one, one.get_pose(), one.get_matrix(), one.get_diffuse(), one.get_specular())
            for one in map(Light, handles)
            if one.is_on() and _root(one) != task
        ]
        self._ambient = sim.simGetArrayParameter(sim.sim_arrayparam_ambient_light)

    def rig(self) -> dict[str, Any]:
        """The usual cameras and what they look at.

        Returns:
            "low" and "high", corners of the plane on the table where tasks are placed (metres), and
            "sensors": by name the usual "matrix" (camera-to-world, x left, y up, z forward), the "angle" of
            view of the picture's longer side (degrees) and the largest distance "far" drawn (metres).
        """
        low, high = _plane()
        sensors = {
            name: {
                "matrix": one.matrix,
                "angle": one.angle,
                "far": one.sensor.get_far_clipping_plane(),
            }
            for name, one in self._sensors.items()
            if name in FIXED
        }
        return {"low": low, "high": high, "sensors": sensors}

    def restore(self) -> None:
        """Undo every change; what was not changed is not touched."""
        self.clear()
        for undo in self._undo:  # in the order of the changes: a lamp on a camera moves back after the camera
            undo()
        self._undo.clear()

    def move_cameras(self, moves: dict[str, dict[str, Any]]) -> None:
        """Move cameras.

        Args:
            moves: by name the "matrix" and the "angle", as in `rig`.
        """
        for name, move in moves.items():
            usual = self._sensors[name]
            sensor = usual.sensor
            self._undo.append(partial(sensor.set_perspective_angle, usual.angle))
            self._undo.append(partial(sensor.set_pose, usual.pose, reset_dynamics=False))
            sensor.set_matrix(move["matrix"])
            sensor.set_perspective_angle(move["angle"])
            _check(f"the pose of camera {name}", sensor.get_matrix(), move["matrix"])
            _check(f"the angle of camera {name}", sensor.get_perspective_angle(), move["angle"], 1e-2)

    def light(self, turn: np.ndarray, centre: np.ndarray, gain: np.ndarray, mode: RenderMode | None) -> None:
        """Turn the lamps, and change the brightness of all light.

        Args:
            turn: rotation matrix.
            centre: of the rotation, metres.
            gain: factor of red, green and blue.
            mode: renderer of all cameras; None: the usual one.
        """
        if not self._lamps:
            raise ValueError("the scene has no lamp that is on, so no light can be changed")
        place = np.eye(4)
        place[:3, :3], place[:3, 3] = turn, centre - turn @ centre
        for lamp in self._lamps:
            self._relight(lamp, place @ lamp.matrix, gain)
        self._undo.append(partial(_set_ambient, self._ambient))
        ambient = np.array(self._ambient) * gain
        _set_ambient(ambient.tolist())
        got = sim.simGetArrayParameter(sim.sim_arrayparam_ambient_light)
        _check("the ambient light", got, ambient)
        if mode is not None:
            for one in self._sensors.values():
                self._undo.append(partial(one.sensor.set_render_mode, one.mode))
                one.sensor.set_render_mode(mode)

    def put_up(self, rows: np.ndarray) -> None:
        """Put up distractors, which cameras see and nothing else: no collision, no sensor, no planner.

        Args:
            rows: of `free_places`.
        """
        for index, (kind, x, y, z, radius, *colour) in enumerate(rows.tolist()):
            shape = Shape.create(
                _SHAPES[int(kind)],
                size=[2 * radius] * 3,
                static=True,
                respondable=False,
                position=[x, y, z],
                color=colour,
            )
            self._distractors.append(shape)
            shape.set_name(f"ai_wam_distractor{index}")  # no task asks for an object of this name
            shape.set_collidable(False)
            shape.set_measurable(False)
            shape.set_detectable(False)  # by proximity sensors; cameras draw what is renderable

    def clear(self) -> None:
        """Take the distractors away."""
        while self._distractors:
            self._distractors.pop().remove()

    def _relight(self, lamp: _Lamp, matrix: np.ndarray, gain: np.ndarray) -> None:
        light, name = lamp.light, f"of lamp {lamp.light.get_name()}"
        self._undo.append(partial(light.set_pose, lamp.pose, reset_dynamics=False))
        self._undo.append(partial(light.set_diffuse, lamp.diffuse.tolist()))
        self._undo.append(partial(light.set_specular, lamp.specular.tolist()))
        light.set_matrix(matrix)
        light.set_diffuse((lamp.diffuse * gain).tolist())
        light.set_specular((lamp.specular * gain).tolist())
        _check(f"the pose {name}", light.get_matrix(), matrix)
        _check(f"the colour {name}", light.get_diffuse(), lamp.diffuse * gain)
        _check(f"the specular colour {name}", light.get_specular(), lamp.specular * gain)


def free_places(task: str, count: int, seed: int) -> np.ndarray:
    """Draw distractors on the table, away from the task's visible objects and from one another.

    Args:
        task: name of the task's root object.
        count: how many.
        seed: of shapes, sizes, colours and places.

    Returns:
        A row for each: number of its shape, x, y, z, radius (metres), red, green, blue.

    Raises:
        ValueError: the table is full.
    """
    rng = np.random.default_rng(seed)  # RLBench's own draws come from the global generator
    low, high = _plane()
    taken = [_footprint(shape) for shape in _visible_shapes(task)]
    rows = []
    for index in range(count):
        radius = rng.uniform(0.02, 0.045)
        for _ in range(_TRIES):
            place = rng.uniform(low[:2], high[:2])
            if all(_distance(place, *box) > _CLEAR for box in taken):
                break
        else:
            raise ValueError(
                f"the table has no free place for distractor {index + 1} of {count} beside {task}; "
                "ask for fewer distractors"
            )
        taken.append((place - radius, place + radius))
        colour = COLOURS[rng.integers(len(COLOURS))]
        rows.append([rng.integers(len(_SHAPES)), *place, low[2] + radius, radius, *colour])
    return np.array(rows, dtype=np.float64).reshape(-1, 8)


def _root(thing: Any) -> str:
    """Name of the object above all others that a thing hangs on."""
    while (parent := thing.get_parent()) is not None:
        thing = parent
    return str(thing.get_name())


def _plane() -> tuple[np.ndarray, np.ndarray]:
    """Corners of RLBench's workspace on the table, as its own scene reads it."""
    plane = Shape("workspace")
    left, right, near, far, _, _ = plane.get_bounding_box()
    position = plane.get_position()
    return position + np.array([left, near, 0.0]), position + np.array([right, far, 0.0])


def _visible_shapes(task: str) -> list[Shape]:
    shapes = Dummy(task).get_objects_in_tree(object_type=ObjectType.SHAPE)
    return [shape for shape in shapes if shape.is_renderable()]


def _footprint(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the rectangle over which a shape's bounding box lies."""
    bounds, matrix = np.reshape(shape.get_bounding_box(), (3, 2)), shape.get_matrix()
    corners = np.stack(np.meshgrid(*bounds), axis=-1).reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    return corners[:, :2].min(axis=0), corners[:, :2].max(axis=0)


def _distance(place: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    return float(np.linalg.norm(np.maximum(np.maximum(low - place, place - high), 0.0)))


def _set_ambient(colour: list[float]) -> None:
    # PyRep hands the values on as they are, and C takes an address.
    sim.simSetArrayParameter(sim.sim_arrayparam_ambient_light, sim.ffi.new("float[3]", colour))


def _check(what: str, got: Any, wanted: Any, within: float = 1e-3) -> None:
    if not np.allclose(got, wanted, rtol=0, atol=within):
        raise ValueError(f"CoppeliaSim did not take {what}: asked for {np.asarray(wanted)}, it has {got}")
