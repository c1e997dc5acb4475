"""A picture of predicted actions in space, with the cameras that saw the scene."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ai_wam.cameras import Cameras
from ai_wam.poses import rotation_from_quaternion

_AXES = ((0, "#d62728", "tool x"), (2, "#1f77b4", "tool z (approach)"))  # column, colour, name
_PATH = "#444444"
_SMALLEST = 0.05  # metres across; a robot that holds still is not to be looked at under a microscope


def draw_trajectory(
    actions: Float[np.ndarray, "a 8"],
    valid: Bool[np.ndarray, "a"],
    cameras: Cameras,
    views: Sequence[str],
    size: tuple[int, int],
    title: str,
) -> bytes:
    """A PNG: the scene with its cameras on the left, the path alone on the right; world frame, metres.

    Args:
        actions: poses, the present one first; those that are not finite are left out.
        valid: which of them were measured; the others are drawn hollow.
        cameras: leading dimension "v".
        views: their names.
        size: height and width of their pictures in pixels.
        title: what is written above.
    """
    figure = Figure(figsize=(13, 6.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    known = np.isfinite(actions).all(axis=1)
    shown, measured = actions[known], valid[known]
    calibrated = cameras.world_from_camera.isfinite().flatten(1).all(dim=1)
    cameras, views = cameras[calibrated], [views[i] for i in calibrated.nonzero().flatten().tolist()]
    scene = figure.add_subplot(1, 2, 1, projection="3d")
    depth = _reach(cameras, shown)
    corners = [_draw_camera(scene, cameras[i], view, size, depth) for i, view in enumerate(views)]
    scene.plot(*shown[:, :3].T, color=_PATH, linewidth=2)
    scene.scatter(*shown[:1, :3].T, color=_PATH, s=20)
    _frame(scene, np.concatenate([shown[:, :3], *corners]), "cameras and path")
    detail = figure.add_subplot(1, 2, 2, projection="3d")
    length = max(_SMALLEST, float(np.ptp(shown[:, :3], axis=0).max())) / 4
    _draw_path(detail, shown, measured, length)
    around = np.concatenate([shown[:, :3] - length, shown[:, :3] + length])
    _frame(detail, around, f"the path: {int(valid[1:].sum())} of {len(valid) - 1} steps measured")
    detail.legend(loc="upper left", fontsize=9, framealpha=0.9)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _reach(cameras: Cameras, shown: Float[np.ndarray, "a 8"]) -> float:
    """How deep the cameras are drawn: a fifth of the way to the path, whatever the room's size."""
    eyes = cameras.world_from_camera[:, :3, 3].double().numpy()
    return 0.2 * float(np.linalg.norm(eyes - shown[0, :3], axis=1).mean())


def _draw_camera(
    axes: Any, camera: Cameras, view: str, size: tuple[int, int], depth: float
) -> Float[np.ndarray, "5 3"]:
    """The pyramid a camera looks into, its upper side thicker; gives its eye and corners."""
    h, w = size
    camera = camera.to(torch.float64)
    pixels = torch.tensor([[0, 0], [w, 0], [w, h], [0, h]], dtype=torch.float64)
    corners = camera.unproject(pixels, torch.full((4,), depth, dtype=torch.float64)).numpy()
    eye = camera.world_from_camera[:3, 3].numpy()
    line = axes.plot(*np.concatenate([corners, corners[:1]]).T, linewidth=1)[0]
    axes.plot(*corners[:2].T, color=line.get_color(), linewidth=3)
    for corner in corners:
        axes.plot(*np.stack([eye, corner]).T, color=line.get_color(), linewidth=1)
    axes.text(*eye, view, color=line.get_color(), fontsize=10)
    return np.concatenate([eye[None], corners])


def _draw_path(
    axes: Any, shown: Float[np.ndarray, "a 8"], measured: Bool[np.ndarray, "a"], length: float
) -> None:
    """Poses in the order of time, their tool axes, and how open the gripper is (size)."""
    axes.plot(*shown[:, :3].T, color=_PATH, linewidth=1)
    rotation = rotation_from_quaternion(torch.from_numpy(shown[:, 3:7]).double()).numpy()
    for column, colour, name in _AXES:
        arrows = rotation[:, :, column] * length
        axes.quiver(*shown[:, :3].T, *arrows.T, color=colour, linewidth=1, alpha=0.7, label=name)
    large = 20 + 60 * shown[:, 7].clip(0, 1)
    for chosen, filled, name in ((measured, True, "measured"), (~measured, False, "bridged, not measured")):
        if chosen.any():
            face = _PATH if filled else "none"
            points = shown[chosen, :3].T
            axes.scatter(*points, s=large[chosen], facecolor=face, edgecolor=_PATH, label=name)
    axes.text(*shown[0, :3], "  now", fontsize=10)


def _frame(axes: Any, points: Float[np.ndarray, "n 3"], title: str) -> None:
    """Equal scales in all directions around some points."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    half = max(_SMALLEST, float(np.ptp(points, axis=0).max())) / 2
    for name, centre in zip("xyz", middle, strict=True):
        getattr(axes, f"set_{name}lim")(centre - half, centre + half)
        getattr(axes, f"set_{name}label")(f"{name} [m]", labelpad=8)
    axes.set_box_aspect((1, 1, 1))
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=11)
