"""Workspaces and camera rigs: the boxes that objects are drawn from, and the cameras that see them.

Poses are those of `benchmarks.simulators.camera_moves`; the field of view is MuJoCo's vertical one.
"""

import math
from collections.abc import Mapping

from ai_wam.errors import InvalidValue
from benchmarks.simulators.camera_moves import Mount, Workspace, framed_mount, framed_points, looking

__all__ = ["RIGS", "VIEWS", "WORKSPACES", "Mount", "Workspace", "mounts"]

VIEWS = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
RIGS = ("wide", "framed")


# Every point of both can be reached with the hand pointing as at home (a test walks a grid over them).
WORKSPACES: Mapping[str, Workspace] = {
    "wide": Workspace(low=(0.08, -0.29, 0.79), high=(0.42, 0.29, 1.245)),
    "framed": Workspace(low=(0.12, -0.225, 0.94), high=(0.40, 0.225, 1.23)),
}


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
            "left_shoulder": looking((-0.35, 0.75, 1.95), (0.3, 0.0, 0.95), 60.0),
            "right_shoulder": looking((-0.35, -0.75, 1.95), (0.3, 0.0, 0.95), 60.0),
            "overhead": looking((0.45, 0.0, 2.3), (0.22, 0.0, 0.752), 60.0),
            "wrist": _WRIST,
        }
    if rig == "framed":
        points = framed_points(workspace)
        centre = workspace.middle
        fixed = {name: framed_mount(centre + direction, points) for name, direction in _DIRECTIONS.items()}
        return {**fixed, "wrist": _WRIST}
    raise InvalidValue(f"rig {rig!r} is unknown; choose one of {list(RIGS)}")
