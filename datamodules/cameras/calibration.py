"""Cameras in JSON, for layouts that have none of their own: the `cameras.json` of docs/shards.md.

    {"front": {"K": 3x3, "size": [height, width], "camera_to_world": 4x4}, ...}

Exactly one of `camera_to_world` and `world_to_camera` (OpenCV axes, metres); matrices may be lists with one
entry per frame where the camera moves. `distortion` holds OpenCV's coefficients, of its pinhole model or,
with `"model": "fisheye"`, of its fisheye model; action images are drawn without, so such a camera also says
`"undistort": true`: its pictures are undistorted when they are read, and K stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ai_wam.camera_checks import check_intrinsics
from ai_wam.cameras import Cameras
from ai_wam.episodes import View
from ai_wam.errors import InvalidValue
from datamodules.cameras.lens_distortion import Lens

_POSES = ("camera_to_world", "world_to_camera")
_KEYS = ("K", "size", *_POSES, "distortion", "model", "undistort")


@dataclass(frozen=True)
class Calibration:
    """One camera: a single matrix where it stands still, one per frame where it moves.

    Attributes:
        intrinsics: K in pixels of pictures of `size`.
        world_from_camera: OpenCV axes, metres.
        size: height and width of the pictures that K is for.
        lens: its distortion; None for pictures without.
    """

    intrinsics: Float[np.ndarray, "_ 3 3"]
    world_from_camera: Float[np.ndarray, "_ 4 4"]
    size: tuple[int, int]
    lens: Lens | None = None

    @classmethod
    def read(cls, entry: Any, at: str) -> "Calibration":
        """Check an entry.

        Args:
            entry: its JSON value.
            at: file and camera, for the error.

        Raises:
            ValueError: keys that are missing, contradict each other or hold no matrices.
        """
        if not isinstance(entry, dict) or not {"K", "size"} <= set(entry):
            raise InvalidValue(
                f'{at}: expected an object with "K", "size" and one of {_POSES}, got {entry!r}'
            )
        _check_keys(entry, at)
        given = [key for key in _POSES if key in entry]
        if len(given) != 1:
            raise InvalidValue(
                f"{at}: has {given or 'neither pose'}; give exactly one of {' and '.join(_POSES)}"
            )
        poses = _matrices(entry[given[0]], 4, f"{at}, {given[0]}")
        k = _matrices(entry["K"], 3, f"{at}, K")
        for name, stack in (("K", k), (given[0], poses)):
            _check_finite(stack, f"{at}, {name}")
        poses = poses if given[0] == "camera_to_world" else _inverse(poses, at)
        found = cls(k, poses, _size(entry["size"], at), _lens(entry, at))
        if found.lens is not None and len(k) > 1:
            raise InvalidValue(
                f"{at}: distortion goes with one K, not with {len(k)}; undistort the pictures first"
            )
        if found.lens is not None and k[0, 0, 1] != 0:
            raise InvalidValue(
                f"{at}: K has the skew {k[0, 0, 1]:g} beside a distortion, which OpenCV does not know; "
                "set it to 0 if it is a fraction of a pixel, or undistort the pictures first"
            )
        found.check(at)
        return found

    def view(self, picture: UInt8[np.ndarray, "h w 3"], number: int) -> View:
        """A frame's picture, without distortion, and its camera."""
        k, pose = self.at(number)
        return View(picture if self.lens is None else self.lens.undistort(picture, k), k, pose)

    def check_size(self, video: str, size: tuple[int, int], at: str) -> None:
        """Check that K belongs to the pictures of a video.

        Raises:
            ValueError: the video has another size, or K belongs to another one.
        """
        if size != self.size:
            raise InvalidValue(
                f"{at}: size {list(self.size)} (height, width), but {video} has {list(size)}; "
                "K must be given for the pictures as a player shows them"
            )
        check_intrinsics(self.intrinsics, self.size, at)

    def scaled(self, size: tuple[int, int], at: str) -> "Calibration":
        """The same camera for pictures of `size`, where they were made smaller or larger as a whole.

        Raises:
            ValueError: another aspect ratio, so that it is unknown what was cut off.
        """
        (h, w), (new_h, new_w) = self.size, size
        if min(h, w) < 1 or min(abs(new_w - w * new_h / h), abs(new_h - h * new_w / w)) > 1:
            raise InvalidValue(
                f"{at}: K is for pictures of {h} x {w} pixels (height x width), the picture has "
                f"{new_h} x {new_w}: the aspect ratio is another one, so it was cropped or padded. Give the "
                "picture as it was calibrated, or correct K and size by hand"
            )
        scale = np.diag([new_w / w, new_h / h, 1.0])  # pixel (0, 0) has its centre at (0.5, 0.5)
        return replace(self, intrinsics=scale @ self.intrinsics, size=size)

    def enlarged(self, factor: float) -> "Calibration":
        """The same camera in a world whose lengths are multiplied by `factor`."""
        scale = np.ones((4, 4))
        scale[:3, 3] = factor
        return replace(self, world_from_camera=self.world_from_camera * scale)

    def check(self, at: str) -> None:
        """Check that the matrices are those of a camera.

        Raises:
            ValueError: numbers that are not finite, a K that is none, a left-handed or distorted pose.
        """
        k, poses = self.intrinsics, self.world_from_camera
        _check_finite(k, f"{at}, K")
        _check_finite(poses, f"{at}, pose")
        if (k[:, [0, 1], [0, 1]] < 1e-6).any() or np.abs(k[:, [1, 2, 2], [0, 0, 1]]).max() > 1e-6:
            raise InvalidValue(
                f"{at}: K must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] in pixels, fx and fy above 0, "
                f"got {k[0].tolist()}; negative ones (RLBench's) belong to cameras whose x and y axes point "
                "left and up: turn those axes and the signs"
            )
        if (np.linalg.det(poses[:, :3, :3]) < 0).any():
            raise InvalidValue(
                f"{at}: the pose is left-handed (its rotation has determinant -1): one axis points the wrong "
                "way. Camera axes are x right, y down, z forward, and the world must be right-handed"
            )
        try:
            Cameras(torch.from_numpy(k[:1]).expand(len(poses), 3, 3), torch.from_numpy(poses))
        except ValueError as error:
            raise InvalidValue(f"{at}: {error}") from error

    def lengths(self, name: str) -> dict[str, int]:
        """Number of entries of each list of matrices; a camera that stands still has none."""
        stacks = {f"{name} K": self.intrinsics, f"{name} pose": self.world_from_camera}
        return {key: len(stack) for key, stack in stacks.items() if len(stack) > 1}

    def at(self, number: int) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]:
        """Both matrices of a frame."""
        k, poses = self.intrinsics, self.world_from_camera
        return np.asarray(k[number if len(k) > 1 else 0]), np.asarray(poses[number if len(poses) > 1 else 0])


def _check_keys(entry: Mapping[str, Any], at: str) -> None:
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise InvalidValue(
            f"{at}: the keys {unknown} are not known; known are {', '.join(_KEYS)}. Lens distortion is "
            'written as "distortion": [k1, k2, p1, p2, k3] in the order of OpenCV, with "model": "fisheye" '
            "for its fisheye model; take out what is not meant for AI-WAM"
        )


def _lens(entry: Mapping[str, Any], at: str) -> Lens | None:
    if "distortion" not in entry and str(entry.get("model", "opencv")).lower() in ("opencv", "pinhole"):
        return None
    lens = Lens.read(entry.get("distortion"), entry.get("model", "opencv"), at)
    if lens is not None and entry.get("undistort") is not True:
        raise InvalidValue(
            f"{at}: its lens distorts the picture ({lens.model} distortion {list(lens.coefficients)}); "
            'action images are drawn without distortion. Add "undistort": true to have its pictures '
            "undistorted as they are read (K stays, the rest is cut off), or give undistorted pictures and "
            "their K"
        )
    return lens


def _size(value: Any, at: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int for side in value):
        raise InvalidValue(f"{at}: size is {value!r}, expected [height, width] in pixels")
    return value[0], value[1]


def _matrices(value: Any, size: int, at: str) -> Float[np.ndarray, "_ n n"]:
    """One matrix or one per frame, as a stack."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(f"{at}: {error}") from error
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != (size, size):
        raise InvalidValue(
            f"{at}: expected {size}x{size} numbers, or one such matrix per frame, got shape {array.shape}"
        )
    return array


def _check_finite(stack: Float[np.ndarray, "_ n n"], at: str) -> None:
    bad = ~np.isfinite(stack).all(axis=(1, 2))
    if bad.any():
        raise InvalidValue(
            f"{at}, frame {int(bad.argmax())}: {int(bad.sum())} of {len(stack)} matrices hold NaN or "
            "infinity; calibrate the camera again, or leave the camera and its pictures out"
        )


def _inverse(poses: Float[np.ndarray, "t 4 4"], at: str) -> Float[np.ndarray, "t 4 4"]:
    try:
        return np.asarray(np.linalg.inv(poses))
    except np.linalg.LinAlgError as error:
        raise InvalidValue(f"{at}: world_to_camera cannot be inverted: {error}") from error
