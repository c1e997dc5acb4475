"""Cameras around a workspace: aimed at it, framed on it, and moved as a shift says. Geometry in numpy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from benchmarks.simulator import WRIST

_MARGIN = 1.06  # framed pictures are wider by this factor than the points they must show
_ABOVE, _BESIDE = 0.1, 0.1  # metres from the tip to an action image's other points, towards wrist and base
_HOME_TIP = (0.282, 0.0, 1.4533)
_ELEVATIONS = (0.0, 85.0)  # degrees over the horizon: cameras look down, and have an upright picture
_VERTICAL = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Workspace:
    """A box in the world frame, metres.

    Attributes:
        low: smallest x, y, z.
        high: largest x, y, z.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def extent(self) -> tuple[float, float, float]:
        """Edge lengths in metres."""
        x, y, z = (b - a for a, b in zip(self.low, self.high, strict=True))
        return x, y, z

    @property
    def middle(self) -> Float[np.ndarray, "3"]:
        """The point that cameras are moved around."""
        return np.mean([self.low, self.high], axis=0)

    @property
    def corners(self) -> Float[np.ndarray, "8 3"]:
        """The eight corners."""
        grid = np.meshgrid(*zip(self.low, self.high, strict=True), indexing="ij")
        return np.stack(grid, axis=-1).reshape(-1, 3)

    def grown(self, margin: float) -> "Workspace":
        """The box with every face moved outwards by a margin in metres."""
        low, high = np.array(self.low) - margin, np.array(self.high) + margin
        return Workspace(_triple(low), _triple(high))

    def widened(self, margin: float) -> "Workspace":
        """The box with those faces moved outwards that are apart: a flat box stays flat."""
        margins = np.where(np.array(self.extent) > 0, margin, 0.0)
        return Workspace(_triple(np.array(self.low) - margins), _triple(np.array(self.high) + margins))

    def contains(self, point: Float[np.ndarray, "3"]) -> bool:
        """Whether a point lies in the box or on its faces."""
        return bool(np.all((self.low <= point) & (point <= self.high)))

    def sample(self, rng: np.random.Generator) -> Float[np.ndarray, "3"]:
        """A point drawn uniformly."""
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True)
class Mount:
    """Where a camera is, in OpenGL's axes (as MuJoCo's): x right, y up, z backward.

    Attributes:
        position: of its centre, metres.
        right: its x axis.
        up: its y axis.
        fov: field of view of a square picture, degrees.
    """

    position: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    fov: float


def mount(
    position: Float[np.ndarray, "3"], right: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"], fov: float
) -> Mount:
    """A camera of arrays."""
    return Mount(_triple(position), _triple(right), _triple(up), fov)


def looking(position: tuple[float, float, float], target: tuple[float, float, float], fov: float) -> Mount:
    """An upright camera at a position, aimed at a target."""
    right, up, _ = _axes(np.array(target) - np.array(position))
    return Mount(position, _triple(right), _triple(up), fov)


def framed_points(workspace: Workspace) -> Float[np.ndarray, "n 3"]:
    """Points that framed cameras must show: the workspace, and an action image's points for poses in it."""
    tips = np.concatenate([workspace.corners, [_HOME_TIP]])
    objects = workspace.grown(0.04).corners
    return np.concatenate(
        [objects, tips, tips + np.array((-0.02, 0, _ABOVE)), tips - np.array((_BESIDE, 0, 0.02))]
    )


def framed_mount(
    position: Float[np.ndarray, "3"],
    points: Float[np.ndarray, "n 3"],
    upright: Float[np.ndarray, "3"] = _VERTICAL,
) -> Mount:
    """The narrowest square picture from a position that shows all points, found by aiming at their middle.

    Args:
        position: of the camera.
        points: what must be seen.
        upright: direction that points up in the picture.

    Raises:
        ValueError: the camera stands among the points.
    """
    aim = points.mean(axis=0) - position
    for _ in range(20):
        right, up, back = _axes(aim, upright)
        local = (points - position) @ np.stack([right, up, back], axis=1)
        if local[:, 2].max() >= 0:
            x, y, z = position
            raise InvalidValue(
                f"shift: a camera at ({x:.2f}, {y:.2f}, {z:.2f}) m stands in the workspace, all of which it "
                "must show: take a larger least distance"
            )
        plane = local[:, :2] / -local[:, 2:]
        low, high = plane.min(axis=0), plane.max(axis=0)
        x, y = (low + high) / 2
        aim = x * right + y * up - back
    fov = math.degrees(2 * math.atan(_MARGIN * float((high - low).max()) / 2))
    return Mount(_triple(position), _triple(right), _triple(up), fov)


def check_moves(
    part: Any,
    mounts: Mapping[str, Mount],
    region: Workspace,
    widest: float,
    points: Float[np.ndarray, "n 3"] | None = None,
) -> None:
    """Refuse elevations that turn a camera over or under the table, and fields of view that are too wide.

    Args:
        part: a `benchmarks.shifts.parts.CameraShift`.
        mounts: the usual cameras.
        region: the workspace.
        widest: largest field of view of a square picture, degrees.
        points: what framed cameras must show; `framed_points(region)` if left out.

    Raises:
        ValueError: the message names the camera and what is possible.
    """
    low, high = part.elevation
    for name in part.views or [view for view in mounts if view != WRIST]:
        usual = elevation(mounts[name], region)
        if (low, high) != (0, 0) and not _ELEVATIONS[0] <= usual + low <= usual + high <= _ELEVATIONS[1]:
            raise InvalidValue(
                f"shift: elevation [{low:g}, {high:g}] would take camera {name!r} from {usual:.0f} degrees "
                f"to {usual + low:.0f} to {usual + high:.0f}; it must stay in [{_ELEVATIONS[0]:g}, "
                f"{_ELEVATIONS[1]:g}]: take a smaller range, or name other cameras in `views`"
            )
        nearest = {"azimuth": 0.0, "elevation": 0.0, "distance": part.distance[0], "roll": 0.0}
        fov = moved(mounts[name], {**nearest, "fov": part.fov[1]}, region, part.framed, points).fov
        if fov > widest:
            raise InvalidValue(
                f"shift: distance and fov would widen camera {name!r} to {fov:.0f} degrees; at most "
                f"{widest:g} are drawn: take a larger least distance or a smaller fov"
            )


def moved(
    usual: Mount,
    values: Mapping[str, float],
    region: Workspace,
    framed: bool,
    points: Float[np.ndarray, "n 3"] | None = None,
) -> Mount:
    """A camera after its drawn move around the workspace's middle.

    Args:
        usual: the camera before.
        values: one camera's of `benchmarks.shifts.parts.CameraShift`.
        region: the workspace.
        framed: aimed at the workspace again; else turned rigidly.
        points: what a framed camera must show; `framed_points(region)` if left out.
    """
    centre = region.middle
    arm = np.array(usual.position) - centre
    turn = about(_VERTICAL, math.radians(values["azimuth"]))
    turned = turn @ about(_side(usual, arm), -math.radians(values["elevation"]))
    position = centre + values["distance"] * (turned @ arm)
    right, up = (turned @ np.array(axis) for axis in (usual.right, usual.up))
    if framed:
        # Nearly overhead the vertical points nowhere in the picture: what was up there stays up.
        upright = up if elevation(usual, region) > _ELEVATIONS[1] else _VERTICAL
        shown = framed_mount(position, framed_points(region) if points is None else points, upright)
    else:
        shown = mount(position, right, up, usual.fov)
    fov = shown.fov * values["fov"]
    roll, right, up = math.radians(values["roll"]), np.array(shown.right), np.array(shown.up)
    rolled = math.cos(roll) * right + math.sin(roll) * up, math.cos(roll) * up - math.sin(roll) * right
    return mount(position, rolled[0], rolled[1], fov)


def all_moved(
    mounts: Mapping[str, Mount],
    drawn: Mapping[str, Any],
    region: Workspace,
    points: Float[np.ndarray, "n 3"] | None = None,
) -> dict[str, Mount]:
    """The cameras that a trial's shift moves, after their moves.

    Args:
        mounts: the usual cameras.
        drawn: values of `benchmarks.shifts.parts.CameraShift`.
        region: the workspace.
        points: what framed cameras must show; `framed_points(region)` if left out.
    """
    return {
        name: moved(mounts[name], values, region, drawn["framed"], points)
        for name, values in drawn["views"].items()
    }


def elevation(camera: Mount, region: Workspace) -> float:
    """Degrees over the horizon, from the workspace's middle."""
    x, y, z = np.array(camera.position) - region.middle
    return math.degrees(math.atan2(z, math.hypot(x, y)))


def about(axis: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix about a unit axis, radians."""
    w, (x, y, z) = math.cos(angle / 2), axis * math.sin(angle / 2)
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    return np.array(
        [
            # Summed in the order of MuJoCo's own function, to the last bit.
            [(ww - yy) + (xx - zz), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), (ww + yy) - (xx + zz), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), (ww - yy) + (zz - xx)],
        ]
    )


def _side(usual: Mount, arm: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The horizontal axis that a camera is raised about; its own where it stands in the zenith."""
    side = np.cross(_VERTICAL, arm)
    length = np.linalg.norm(side)
    return side / length if length > 1e-9 else np.array(usual.right)


def _axes(
    direction: Float[np.ndarray, "3"], upright: Float[np.ndarray, "3"] = _VERTICAL
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Unit right, up and back axes of a camera that looks along a direction."""
    back = -direction / np.linalg.norm(direction)
    right = np.cross(upright, back)
    right /= np.linalg.norm(right)
    return right, np.cross(back, right), back


def _triple(vector: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
