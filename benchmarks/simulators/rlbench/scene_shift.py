"""Shifted scenes of RLBench: drawn values become poses and angles of its sensors and factors of its light."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from benchmarks.simulators import camera_moves
from benchmarks.simulators.camera_moves import Mount, Workspace

PARTS = frozenset({"cameras", "light", "distractors"})
_HEIGHT = 0.5  # metres over the table in which tasks happen; the tip begins higher, and is framed by itself
_WIDEST = 120.0  # degrees of a picture's longer side


@dataclass(frozen=True)
class Rig:
    """The usual fixed cameras of a running simulator.

    Attributes:
        region: the workspace: the plane where tasks are placed, and the space over it.
        mounts: cameras by view.
        far: metres up to which each camera draws.
        size: height and width of the pictures.
    """

    region: Workspace
    mounts: Mapping[str, Mount]
    far: Mapping[str, float]
    size: tuple[int, int]

    @classmethod
    def of(cls, reply: Mapping[str, Any], size: tuple[int, int]) -> "Rig":
        """From the environment server's answer to `rig`."""
        (x, y, z), (right, far, _) = reply["low"].tolist(), reply["high"].tolist()
        sensors = reply["sensors"]
        mounts = {name: _mount(one["matrix"], one["angle"], size) for name, one in sensors.items()}
        reach = {name: float(one["far"]) for name, one in sensors.items()}
        return cls(Workspace((x, y, z), (right, far, z + _HEIGHT)), mounts, reach, size)

    def check(self, part: Any) -> None:
        """Refuse ranges that take a camera over the zenith, too far away or too close for its field of view.

        Args:
            part: a `benchmarks.shifts.parts.CameraShift`.

        Raises:
            ValueError: the message names the camera and what is possible.
        """
        camera_moves.check_moves(part, self.mounts, self.region, _across(_WIDEST, self.size, inward=True))
        around = float(np.linalg.norm(self.region.extent)) / 2
        for name in part.views or self.mounts:
            usual = float(np.linalg.norm(np.array(self.mounts[name].position) - self.region.middle))
            corner, far = part.distance[1] * usual + around, self.far[name]
            if part.distance[1] > 1 and corner > far:
                raise InvalidValue(
                    f"shift: distance up to {part.distance[1]:g} would take camera {name!r} {corner:.1f} m "
                    f"from the workspace's corners, and RLBench draws up to {far:.1f} m: take a smaller one"
                )


def check_light(part: Any) -> None:
    """Refuse more lamps than there are.

    Args:
        part: a `benchmarks.shifts.parts.LightShift`.

    Raises:
        ValueError: PyRep cannot make lamps.
    """
    if part.lamps[1] > 1:
        raise InvalidValue(
            f"shift: lamps of LightShift is [{part.lamps[0]:g}, {part.lamps[1]:g}]; PyRep makes none beside "
            "RLBench's own: leave lamps at [1, 1], and shift tilt, strength, colour or shadows"
        )


def changes(drawn: Mapping[str, Any], rig: Rig) -> dict[str, Any]:
    """What the environment server must change for a trial's drawn values, by part.

    Args:
        drawn: values of the parts in `PARTS`.
        rig: the usual cameras.

    Raises:
        ValueError: a camera that shows the workspace from where it was drawn would need too wide a picture.
    """
    found: dict[str, Any] = {}
    if "cameras" in drawn:
        cameras = camera_moves.all_moved(rig.mounts, drawn["cameras"], rig.region)
        found["cameras"] = {name: _sensor(name, mount, rig.size) for name, mount in cameras.items()}
    if "light" in drawn:
        light, side = drawn["light"], math.radians(drawn["light"]["side"])
        axis = np.array([math.cos(side), math.sin(side), 0.0])
        found["light"] = {
            "turn": camera_moves.about(axis, math.radians(light["tilt"])),
            "centre": rig.region.middle,
            "gain": np.array(light["tint"]) * light["strength"],
            "shadows": light["shadows"],
        }
    if "distractors" in drawn:
        found["distractors"] = dict(drawn["distractors"])
    return found


def _mount(matrix: Float[np.ndarray, "4 4"], angle: float, size: tuple[int, int]) -> Mount:
    """A sensor of CoppeliaSim (x left, y up, z forward; angle of the longer side) as a camera of ours."""
    fov = _across(angle, size, inward=True)
    return camera_moves.mount(matrix[:3, 3], -matrix[:3, 0], matrix[:3, 1], fov)


def _sensor(name: str, mount: Mount, size: tuple[int, int]) -> dict[str, Any]:
    """The inverse of `_mount`."""
    angle = _across(mount.fov, size, inward=False)
    if angle > _WIDEST:
        raise InvalidValue(
            f"shift: camera {name!r} would need {angle:.0f} degrees across its longer side to show the "
            f"workspace; at most {_WIDEST:g} are drawn: take a larger least distance or a smaller fov"
        )
    right, up = np.array(mount.right), np.array(mount.up)
    matrix = np.eye(4)
    matrix[:3] = np.stack([-right, up, -np.cross(right, up), np.array(mount.position)], axis=1)
    return {"matrix": matrix, "angle": angle}


def _across(degrees: float, size: tuple[int, int], inward: bool) -> float:
    """Field of view of the middle square from that of the longer side, or outward from the square's."""
    ratio = max(size) / min(size)
    half = math.tan(math.radians(degrees) / 2) * (1 / ratio if inward else ratio)
    return math.degrees(2 * math.atan(half))
