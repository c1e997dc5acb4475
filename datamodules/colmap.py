"""COLMAP models in text form: the intrinsics of `cameras.txt`, the poses of `images.txt`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from ai_wam.poses import rotation_from_quaternion
from datamodules.calibration import Calibration
from datamodules.lens import Lens
from datamodules.rotations import to_quaternion

# Of COLMAP's camera models: number of focal lengths, where the further numbers stand among the coefficients
# of OpenCV, and of which of its models (colmap.github.io/cameras.html).
_MODELS: dict[str, tuple[int, tuple[int, ...], str]] = {
    "SIMPLE_PINHOLE": (1, (), "opencv"),
    "PINHOLE": (2, (), "opencv"),
    "SIMPLE_RADIAL": (1, (0,), "opencv"),
    "RADIAL": (1, (0, 1), "opencv"),
    "OPENCV": (2, (0, 1, 2, 3), "opencv"),
    "FULL_OPENCV": (2, (0, 1, 2, 3, 4, 5, 6, 7), "opencv"),
    "SIMPLE_RADIAL_FISHEYE": (1, (0,), "fisheye"),
    "RADIAL_FISHEYE": (1, (0, 1), "fisheye"),
    "OPENCV_FISHEYE": (2, (0, 1, 2, 3), "fisheye"),
}
_WIDEST = 100_000  # pixels


def read_colmap(folder: Path, files: Mapping[str, Path]) -> dict[str, Calibration]:
    """Cameras of some pictures of a model, which may hold more; lengths in the model's unit.

    Args:
        folder: holds cameras.txt and images.txt.
        files: the picture of each view, known to the model by its name without folders.

    Raises:
        ValueError: files that cannot be read, a picture the model lacks, an unknown camera model.
    """
    lenses = {row[0]: row for row in _rows(folder / "cameras.txt", columns=5)}
    images = {  # each picture's second line lists its points
        Path(" ".join(row[9:])).name: row for row in _rows(folder / "images.txt", columns=10, every=2)
    }
    found = {}
    for view, file in files.items():
        if file.name not in images:
            raise InvalidValue(
                f"{folder / 'images.txt'} has no picture named {file.name!r} (view {view!r}); it has "
                f"{sorted(images)}"
            )
        row, at = images[file.name], f"{folder / 'images.txt'}, picture {file.name!r}"
        if row[8] not in lenses:
            raise InvalidValue(
                f"{at}: camera {row[8]} is not in {folder / 'cameras.txt'}, which has {sorted(lenses)}"
            )
        k, size, lens = _lens(lenses[row[8]], folder / "cameras.txt")
        found[view] = Calibration(k[None], _colmap_pose(row, at)[None], size, lens)
    return found


def _rows(path: Path, columns: int, every: int = 1) -> list[list[str]]:
    """The words of every n-th line that is no comment, at least so many of them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidValue(
            f"{path} cannot be read: {error}; a COLMAP model must be in text form "
            "(colmap model_converter --output_type TXT)"
        ) from error
    rows = [line.split() for line in lines if not line.startswith("#")][::every]  # empty lines count
    for row in rows:
        if len(row) < columns:
            raise InvalidValue(
                f"{path}: expected {columns} or more entries, got {' '.join(row)!r}; export it again"
            )
    return rows


def _lens(row: list[str], path: Path) -> tuple[Float[np.ndarray, "3 3"], tuple[int, int], Lens | None]:
    """K, the height and width it is for, and the distortion."""
    kind, at = row[1], f"{path}, camera {row[0]}"
    if kind not in _MODELS:
        raise InvalidValue(
            f"{at} has the model {kind}; known are {', '.join(_MODELS)}. Remove the distortion (colmap "
            "image_undistorter) and use its pictures and model"
        )
    focals, places, model = _MODELS[kind]
    width, height, *numbers = _numbers(row[2:], at, 4 + focals + len(places))
    if not (0 < width <= _WIDEST and 0 < height <= _WIDEST):
        raise InvalidValue(f"{at}: a picture of {width:g} x {height:g} pixels; export the model again")
    fx, fy, (cx, cy) = numbers[0], numbers[focals - 1], numbers[focals : focals + 2]
    coefficients = np.zeros(max(places) + 1 if model == "opencv" and places else 4)
    coefficients[list(places)] = numbers[focals + 2 :]
    lens = Lens.read(_padded(coefficients), model, at) if places else None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (round(height), round(width)), lens


def _padded(coefficients: Float[np.ndarray, "n"]) -> Float[np.ndarray, "m"]:
    """OpenCV takes 4, 5 or 8 of them."""
    length = next(size for size in (4, 5, 8) if size >= len(coefficients))
    return np.pad(coefficients, (0, length - len(coefficients)))


def _colmap_pose(row: list[str], at: str) -> Float[np.ndarray, "4 4"]:
    """world_from_camera of QW QX QY QZ TX TY TZ, which map the world into the camera."""
    values = np.array(_numbers(row[1:8], at, 7))
    quaternion = torch.from_numpy(to_quaternion(values[None, :4], "quaternion_wxyz", at)[0])
    rotation = rotation_from_quaternion(quaternion).numpy()
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3], world_from_camera[:3, 3] = rotation.T, -rotation.T @ values[4:]
    return world_from_camera


def _numbers(words: list[str], at: str, count: int) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise InvalidValue(f"{at}: {error}") from error
    if len(numbers) != count:
        raise InvalidValue(f"{at}: expected {count} numbers, got {words}")
    return numbers
