"""Tests DROID's calibrations, which are accepted or rejected by camera.

The recorded extrinsics are often wrong (a camera was moved, a calibration belongs to another day). The tool's
trajectory, projected into a fixed camera, must be in the picture and where the picture changes, since the arm
is what moves; a camera on the hand must keep its pose relative to the hand.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ai_wam.cameras import Cameras
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.files.json_yaml import read_json

_EXTRINSICS = ("cam2base_extrinsic_superset.json", "cam2base_extrinsics.json")  # better one first
_THIN = 4  # every n-th pixel is enough to find motion
_STEP = 0.01  # metres between two compared frames that count as motion
_RADIUS = 0.1  # metres around the tool that the gripper fills
_PAIRS = 3  # pairs of frames that are needed at least


@dataclass(frozen=True)
class Limits:
    """Limits within which a calibration is accepted.

    Attributes:
        visible: part of the frames in which the projected tool must lie in the picture.
        motion: how much more the picture must change around the projected tool than everywhere on average;
            the median over the compared pairs of frames.
        hand_metres: how far a camera on the hand may move against the tool.
        hand_radians: how far it may turn against the tool.
        looks: frames that are compared for motion.
    """

    visible: float = 0.5
    motion: float = 1.5
    hand_metres: float = 0.02
    hand_radians: float = 0.1
    looks: int = 24


@dataclass(frozen=True)
class Verdict:
    """The result of a calibration's test, kept in the episode's provenance.

    Attributes:
        kept: whether the calibration is used.
        source: the file it comes from.
        why: in words.
        measured: the numbers behind it.
    """

    kept: bool
    source: str
    why: str
    measured: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@lru_cache(maxsize=8)  # files of up to 100 MB, asked for once per episode
def _table(path: AnyPath, size: int, changed: int) -> dict[str, Any]:
    """A file's content; `size` and `changed` are keys of the cache, so that a mended file is read again."""
    return read_json(path)


def _entry(path: AnyPath, uuid: str) -> Mapping[str, Any]:
    """A file's annotations of an episode; empty where it has none."""
    if not path.exists():
        return {}
    state = path.stat()
    entry = _table(path, state.st_size, state.st_mtime_ns).get(uuid, {})
    if not isinstance(entry, dict):
        raise InvalidValue(f"{path}, {uuid}: {entry!r} is no object; download the file again")
    return entry


def corrected_pose(folder: AnyPath, uuid: str, serial: str) -> tuple[list[float], str] | None:
    """The published pose of a left camera (x y z, roll pitch yaw) and the file's name, if there is one.

    Raises:
        ValueError: a pose that is not six finite numbers.
    """
    for name in _EXTRINSICS:
        entry = _entry(folder / name, uuid)
        for key in (f"{serial}_left", serial):
            if entry.get(key) is not None:
                return _finite(entry[key], 6, f"{folder / name}, {uuid}, {key}"), name
    return None


def published_intrinsics(folder: AnyPath, uuid: str, serial: str) -> Float[np.ndarray, "3 3"] | None:
    """K of a left camera from intrinsics.json, which lists fx, cx, fy, cy.

    Raises:
        ValueError: other numbers, or a lens that bends the picture.
    """
    path = folder / "intrinsics.json"
    entry, at = _entry(path, uuid).get(serial), f"{path}, {uuid}, {serial}"
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise InvalidValue(f"{at}: {entry!r} is no object; download the file again")
    fx, cx, fy, cy = _finite(entry.get("cameraMatrix"), 4, f"{at}, cameraMatrix")
    if np.asarray(entry.get("distCoeffs", 0.0), dtype=object).any():
        raise InvalidValue(
            f"{at}: distCoeffs are {entry['distCoeffs']}, so its pictures are distorted, which this source "
            "does not mend; leave the view out (views: ...), or undistort its videos and set them to 0"
        )
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _finite(value: Any, count: int, at: str) -> list[float]:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(f"{at}: {value!r} holds no numbers; download the file again") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InvalidValue(f"{at}: {value!r}, expected {count} finite numbers; download the file again")
    return numbers.tolist()


def phrasings(folder: AnyPath, uuid: str) -> tuple[str, ...]:
    """The annotations of an episode, in order.

    Raises:
        ValueError: an annotation that is no text.
    """
    path = folder / "droid_language_annotations.json"
    entry = _entry(path, uuid)
    texts = [entry[key] for key in sorted(entry) if key.startswith("language_instruction")]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise InvalidValue(
            f"{path}, {uuid}: the instruction {wrong[0]!r} is no text; download the file again"
        )
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def check_fixed_camera(
    cameras: Cameras,
    positions: Float[np.ndarray, "t 3"],
    size: tuple[int, int],
    images: Iterable[tuple[int, UInt8[np.ndarray, "h w 3"]]],
    source: str,
    limits: Limits,
) -> Verdict:
    """Test a fixed camera.

    Args:
        cameras: one per frame.
        positions: of the tool, metres.
        size: height and width of the pictures.
        images: some frames' numbers and pictures, in order.
        source: where the calibration comes from.
        limits: when it is accepted.
    """
    points = torch.from_numpy(positions)[:, None]
    pixels, depth, visible = (part[:, 0].numpy() for part in cameras.project(points, size))
    seen = float(visible.mean())
    measured = {"visible": seen}
    if seen < limits.visible:
        why = f"the tool projects into the picture in {seen:.0%} of the frames, below {limits.visible:.0%}"
        return Verdict(False, source, why, measured)
    radius = float(cameras.intrinsics[0, 0, 0]) * _RADIUS / np.where(visible, depth, np.inf)
    lifts = list(_relative_changes(images, positions, pixels, radius, visible))
    if len(lifts) < _PAIRS:
        return Verdict(
            True, source, "the tool projects into the picture; it moves too little for more", measured
        )
    measured["motion"] = float(np.median(lifts))
    if measured["motion"] < limits.motion:
        why = (
            f"around the projected tool the picture changes {measured['motion']:.2f} times as much as on "
            f"average, below {limits.motion:g}: the arm is elsewhere"
        )
        return Verdict(False, source, why, measured)
    return Verdict(True, source, "the picture changes where the tool projects to", measured)


def check_hand_camera(
    poses: Float[np.ndarray, "t 4 4"], tool: Float[np.ndarray, "t 4 4"], source: str, limits: Limits
) -> Verdict:
    """Test a camera on the hand: its pose relative to the tool must not change."""
    relative = np.linalg.inv(tool) @ poses
    metres = float(np.linalg.norm(relative[:, :3, 3] - relative[0, :3, 3], axis=1).max())
    half = np.linalg.norm(relative[:, :3, :3] - relative[0, :3, :3], axis=(1, 2)) / 8**0.5
    radians = float(2 * np.arcsin(half.clip(max=1)).max())
    measured = {"hand_metres": metres, "hand_radians": radians}
    if metres > limits.hand_metres or radians > limits.hand_radians:
        why = (
            f"against the tool the camera moves {metres:.3f} m and turns {radians:.3f} rad, but it sits on it"
        )
        return Verdict(False, source, why, measured)
    return Verdict(True, source, "the camera keeps its place on the hand", measured)


def _relative_changes(
    images: Iterable[tuple[int, UInt8[np.ndarray, "h w 3"]]],
    positions: Float[np.ndarray, "t 3"],
    pixels: Float[np.ndarray, "t 2"],
    radius: Float[np.ndarray, "t"],
    visible: np.ndarray,
) -> Iterator[float]:
    """Change around the tool over change everywhere, for pairs of frames between which the tool moves."""
    for (before, a), (after, b) in pairwise(images):
        moved = np.linalg.norm(positions[after] - positions[before])
        if moved < _STEP or not (visible[before] and visible[after]):
            continue
        change = np.abs(a[::_THIN, ::_THIN].astype(np.float32) - b[::_THIN, ::_THIN]).mean(axis=2)
        rows, columns = (np.mgrid[: change.shape[0], : change.shape[1]] + 0.5) * _THIN
        u, v = pixels[after]
        near = np.hypot(columns - u, rows - v) <= max(radius[after], _THIN)
        if near.any() and change.mean() > 0:
            yield float(change[near].mean() / change.mean())
