"""Draws recorded poses into a user's own pictures, where a wrong calibration is seen at once."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw

from ai_wam.action_images import tool_points
from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, EpisodeSource, View
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path, atomic_file, inside
from ai_wam.files.json_yaml import read_text
from ai_wam.utils.counted import counted
from ai_wam.utils.number_checks import check_numbers
from datamodules.shards.format import INDEX
from datamodules.shards.reader import ShardSet
from datamodules.sources.folder import FolderSource

Points = Mapping[tuple[str, str, int], tuple[float, float]]  # (key, view, frame) -> pixel x, y
_AXIS = 0.1  # metres
_COLOURS = ((255, 60, 60), (70, 220, 90), (80, 140, 255))
_EPISODES, _FRAMES = 3, 30  # checked where no points are given: episodes, and every n-th frame
_LAGS = range(-5, 6)  # frames by which poses may be too early or too late
_COLUMNS = ["key", "view", "frame", "x", "y"]


@dataclass
class ViewCheck:
    """Result of the check of one camera.

    Attributes:
        distances: pixels between each seen point and the projected one; infinite where the tool does not
            project into the picture.
        frames: number of frames checked.
        placeless: of those, with the tool behind the camera or the calibration lost.
        lagged: the distances if the pose of so many frames later is projected, by that number.
    """

    distances: list[float] = field(default_factory=list)
    frames: int = 0
    placeless: int = 0
    lagged: dict[int, list[float]] = field(default_factory=lambda: {lag: [] for lag in _LAGS})

    def add(self, projected: Float[np.ndarray, "3 2"], seen: tuple[float, float] | None) -> None:
        """Count a frame."""
        known = bool(np.isfinite(projected[0]).all())
        self.frames += 1
        self.placeless += not known
        if seen is not None:
            self.distances.append(_pixels_apart(projected, seen))

    def passes(self, max_pixels: float) -> bool:
        """Whether the tool projects into at least half of the pictures, and near where it was seen."""
        near = not self.distances or bool(np.median(self.distances) <= max_pixels)
        return near and self.placeless <= self.frames / 2

    def lag(self, max_pixels: float) -> tuple[int, float] | None:
        """How many frames later the poses fit the pictures, and the median distance then.

        None if they fit as they are or nowhere, or for fewer than three points, which may fit by chance.
        """
        if len(self.distances) < 3 or np.median(self.distances) <= max_pixels:
            return None
        enough = {lag: apart for lag, apart in self.lagged.items() if len(apart) > len(self.distances) / 2}
        medians = {lag: float(np.median(apart)) for lag, apart in enough.items()}
        best = min(medians, key=lambda lag: medians[lag], default=0)
        return (best, medians[best]) if best and medians[best] <= max_pixels else None


def open_recordings(path: str) -> EpisodeSource:
    """A folder of shards, or of plain files (`datamodules.sources.folder`).

    Raises:
        ValueError: neither of them.
    """
    return ShardSet(path) if (as_path(path) / INDEX).is_file() else FolderSource(path)


def painted_frames(source: EpisodeSource, seen: str | None) -> str:
    """In words, which frames `camera_check` paints."""
    if seen is not None:
        return f"the frames of {seen}"
    few, all_of_them = min(_EPISODES, len(source)), len(source)
    return f"every {_FRAMES}th frame of the first {few} of {counted(all_of_them, 'episode')}"


def camera_check(source: EpisodeSource, out: AnyPath, seen: str | None = None) -> dict[str, ViewCheck]:
    """Write overlays, and compare projected poses with points where the tool was seen.

    Args:
        source: the recordings.
        out: folder of the overlays, `<key>-<view>-<frame>.png`.
        seen: CSV of pixels (x right, y down, the first pixel's centre at 0.5) where the tool centre point is
            seen; those frames are checked. If left out, every 30th frame of the first three episodes.

    Returns:
        The result of each view.

    Raises:
        ValueError: points that name no recorded frame.
    """
    points = {} if seen is None else read_points(as_path(seen))
    keys = {key for key, _, _ in points}
    found: dict[str, ViewCheck] = defaultdict(ViewCheck)
    left = dict(points)
    for number in range(len(source) if points else min(_EPISODES, len(source))):
        episode = source[number]
        if points and episode.key not in keys:
            continue
        _check_episode(episode, points, left, out, found)
    if left:
        raise InvalidValue(
            f"{seen}: {counted(len(left), 'point')} of no recorded frame, the first one key, view and "
            f"frame {next(iter(left))}; frames count from 0"
        )
    return dict(found)


def read_points(path: AnyPath) -> dict[tuple[str, str, int], tuple[float, float]]:
    """The CSV of seen points.

    Raises:
        ValueError: no file in UTF-8, other columns, rows that are no numbers, or a point listed twice.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise InvalidValue(f"{path} is no CSV: {error}") from error
    if not rows or list(rows[0]) != _COLUMNS:
        found = f"columns {[*rows[0]]}" if rows else "no row of points"
        raise InvalidValue(f"{path}: {found}, expected {','.join(_COLUMNS)}"[:300])
    points: dict[tuple[str, str, int], tuple[float, float]] = {}
    for number, row in enumerate(rows, 2):
        try:
            at, pixel = (row["key"], row["view"], int(row["frame"])), (float(row["x"]), float(row["y"]))
        except (ValueError, TypeError) as error:
            raise InvalidValue(f"{path}, line {number} is not key,view,frame,x,y: {error}") from error
        check_numbers(f"{path}, line {number}", x=pixel[0], y=pixel[1])
        if None in row:
            raise InvalidValue(f"{path}, line {number} has more than {len(_COLUMNS)} values: {row}"[:300])
        if at in points:
            raise InvalidValue(f"{path}, line {number}: {at} was seen before, at {points[at]}")
        points[at] = pixel
    return points


def _check_episode(
    episode: Episode,
    points: Points,
    left: dict[tuple[str, str, int], tuple[float, float]],
    out: AnyPath,
    found: dict[str, ViewCheck],
) -> None:
    marked, actions = list[tuple[ViewCheck, int, View, tuple[float, float]]](), list[Any]()
    for number, frame in enumerate(episode.frames):
        actions.append(frame.action)
        for name, view in frame.views.items():
            at = (episode.key, name, number)
            if frame.action is None or not (at in points if points else number % _FRAMES == 0):
                continue
            projected = project(frame.action, view)
            seen = left.pop(at, None)
            found[name].add(projected, seen)
            if seen is not None:
                marked.append((found[name], number, view, seen))
            _paint(view, projected, points.get(at), inside(out, f"{episode.key}-{name}-{number:05d}.png"))
    for check, number, view, seen in marked:
        for lag, apart in check.lagged.items():
            if 0 <= number + lag < len(actions) and actions[number + lag] is not None:
                apart.append(_pixels_apart(project(actions[number + lag], view), seen))


def _pixels_apart(projected: Float[np.ndarray, "3 2"], seen: tuple[float, float]) -> float:
    """From the projected tool centre point to where it is seen; infinite where it does not project."""
    apart = float(np.hypot(*(projected[0] - np.array(seen))))
    return apart if np.isfinite(apart) else np.inf


def project(pose: Float[np.ndarray, "8"], view: View) -> Float[np.ndarray, "3 2"]:
    """Pixels of the tool centre point, and of the ends of its x and its negative z axis; NaN if behind."""
    action = torch.from_numpy(np.asarray(pose, np.float64))
    k, e = (torch.from_numpy(np.asarray(m, np.float64)) for m in (view.intrinsics, view.world_from_camera))
    found = Cameras(k, e).project(tool_points(action, _AXIS), (view.image.shape[0], view.image.shape[1]))
    return found.pixels.masked_fill(found.depth[..., None] <= 0, torch.nan).numpy()


def _paint(
    view: View, projected: Float[np.ndarray, "3 2"], seen: tuple[float, float] | None, path: AnyPath
) -> None:
    """The tool's axes as lines from a cross at its centre point; a ring where it was seen."""
    scale = max(1, round(512 / max(view.image.shape[:2])))
    picture = Image.fromarray(view.image).resize(
        (view.image.shape[1] * scale, view.image.shape[0] * scale), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture)
    tool, *ends = (projected * scale).tolist()
    if np.isfinite(projected).all():
        for end, colour in zip(ends, _COLOURS[1:], strict=True):
            draw.line([*tool, *end], colour, 2)
        x, y = tool
        for line in ([x - 7, y, x + 7, y], [x, y - 7, x, y + 7]):
            draw.line(line, _COLOURS[0], 2)
    if seen is not None:
        x, y = seen[0] * scale, seen[1] * scale
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], outline=(255, 255, 255), width=2)
    with atomic_file(path) as stream:
        picture.save(stream, "PNG")
