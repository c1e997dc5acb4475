"""Workspaces and camera rigs: the boxes that objects are drawn from, and the cameras that see them.

Poses here are OpenGL's (as MuJoCo's): x right, y up, z backward. Field of view is vertical, in degrees.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ai_wam.errors import InvalidValue

VIEWS = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
RIGS = ("wide", "framed")
_MARGIN = 1.06  # framed pictures are wider by this factor than the points they must show
_ABOVE, _BESIDE = 0.1, 0.1  # metres from the tip to an action image's other points, towards wrist and base
_HOME_TIP = (0.282, 0.0, 1.4533)


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


# Every point of both can be reached with the hand pointing as at home (a test walks a grid over them).
WORKSPACES: Mapping[str, Workspace] = {
    "wide": Workspace(low=(0.08, -0.29, 0.79), high=(0.42, 0.29, 1.245)),
    "framed": Workspace(low=(0.12, -0.225, 0.94), high=(0.40, 0.225, 1.23)),
}


@dataclass(frozen=True)
class Mount:
    """One camera as MuJoCo describes it.

    Attributes:
        position: of its centre, metres.
        right: its x axis.
        up: its y axis.
        fov: vertical field of view of a square image, degrees.
    """

    position: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    fov: float

    def mjcf(self, name: str) -> str:
        """The camera element."""
        axes = " ".join(f"{value:.9g}" for value in (*self.right, *self.up))
        position = " ".join(f"{value:.9g}" for value in self.position)
        return f'<camera name="{name}" pos="{position}" xyaxes="{axes}" fovy="{self.fov:.9g}"/>'


_FRONT = Mount((1.35, 0.0, 1.58), (0.0, 1.0, 0.0), (-0.42262, 0.0, 0.90631), 40.0)  # RLBench's
# In the hand's frame: on the side away from the base, tilted back so that the picture shows the fingertips.
_WRIST = Mount((0.08, 0.0, 0.0), (0.0, 1.0, 0.0), (0.966, 0.0, 0.259), 75.0)

# From the workspace's centre to the camera, metres: far enough that near spheres look little larger.
_DIRECTIONS: Mapping[str, tuple[float, float, float]] = {
    "front": (2.03, 0.0, 0.947),  # RLBench's direction
    "left_shoulder": (-0.77, 1.9, 0.87),
    "right_shoulder": (-0.77, -1.9, 0.87),
    "overhead": (0.35, 0.0, 2.2),
}


def azimuth(view: str) -> float:
    """Degrees about the vertical axis at which a fixed camera of the framed rig stands; 0 is in front."""
    x, y, _ = _DIRECTIONS[view]
    return math.degrees(math.atan2(y, x))


def mounts(rig: str, workspace: Workspace) -> dict[str, Mount]:
    """The cameras of a rig by view name; "wrist" in the hand's frame, the others in the world's.

    "wide" looks like RLBench: its front camera exactly, 60 degrees for the others. "framed" aims every fixed
    camera at the workspace and narrows it until the workspace, the home pose and the points an action image
    draws around the tip just fit.

    Raises:
        ValueError: unknown rig.
    """
    if rig == "wide":
        return {
            "front": _FRONT,
            "left_shoulder": _look((-0.35, 0.75, 1.95), (0.3, 0.0, 0.95), 60.0),
            "right_shoulder": _look((-0.35, -0.75, 1.95), (0.3, 0.0, 0.95), 60.0),
            "overhead": _look((0.45, 0.0, 2.3), (0.22, 0.0, 0.752), 60.0),
            "wrist": _WRIST,
        }
    if rig == "framed":
        points = framed_points(workspace)
        centre = np.mean([workspace.low, workspace.high], axis=0)
        fixed = {name: _frame(centre + direction, points) for name, direction in _DIRECTIONS.items()}
        return {**fixed, "wrist": _WRIST}
    raise InvalidValue(f"rig {rig!r} is unknown; choose one of {list(RIGS)}")


def framed_mount(position: Float[np.ndarray, "3"], workspace: Workspace) -> Mount:
    """A camera at a position, aimed and narrowed as those of the framed rig are."""
    return _frame(position, framed_points(workspace))


def mount(
    position: Float[np.ndarray, "3"], right: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"], fov: float
) -> Mount:
    """A camera of arrays."""
    return Mount(_triple(position), _triple(right), _triple(up), fov)


def framed_points(workspace: Workspace) -> Float[np.ndarray, "n 3"]:
    """Points that framed cameras must show: the workspace, and an action image's points for poses in it."""
    tips = np.concatenate([workspace.corners, [_HOME_TIP]])
    objects = workspace.grown(0.04).corners
    return np.concatenate(
        [objects, tips, tips + np.array((-0.02, 0, _ABOVE)), tips - np.array((_BESIDE, 0, 0.02))]
    )


def _look(position: tuple[float, float, float], target: tuple[float, float, float], fov: float) -> Mount:
    right, up, _ = _axes(np.array(target) - np.array(position))
    return Mount(position, _triple(right), _triple(up), fov)


def _frame(position: Float[np.ndarray, "3"], points: Float[np.ndarray, "n 3"]) -> Mount:
    """The narrowest square picture from `position` that shows all points, found by aiming at their middle."""
    aim = points.mean(axis=0) - position
    for _ in range(20):
        right, up, back = _axes(aim)
        local = (points - position) @ np.stack([right, up, back], axis=1)
        plane = local[:, :2] / -local[:, 2:]
        low, high = plane.min(axis=0), plane.max(axis=0)
        x, y = (low + high) / 2
        aim = x * right + y * up - back
    fov = math.degrees(2 * math.atan(_MARGIN * float((high - low).max()) / 2))
    return Mount(_triple(position), _triple(right), _triple(up), fov)


def _axes(
    direction: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Unit right, up and back axes of an upright camera that looks along a direction."""
    back = -direction / np.linalg.norm(direction)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    return right, np.cross(back, right), back


def _triple(vector: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
