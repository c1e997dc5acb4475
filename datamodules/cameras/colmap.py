"""COLMAP models in text form: the intrinsics of `cameras.txt`, the poses of `images.txt`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from ai_wam.poses import rotation_from_quaternion
from datamodules.cameras.calibration import Calibration
from datamodules.cameras.lens_distortion import Lens
from datamodules.reading.pictures_and_text import parse_number, read_lines
from datamodules.reading.rotations import to_quaternion

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
    """Cameras of some of a model's pictures; lengths in the model's unit.

    Args:
        folder: holds cameras.txt and images.txt.
        files: the picture of each view. The model's picture is the one whose path has most parts in common
            with the file's, counted from the end; at least the name.

    Raises:
        ValueError: files that cannot be read, a picture the model lacks or holds more than once, an unknown
            camera model.
    """
    lenses = _unique((row[0], row) for row in _rows(folder / "cameras.txt", columns=5))
    images = _unique(  # each picture's second line lists its points
        (" ".join(row[9:]), row) for row in _rows(folder / "images.txt", columns=10, every=2)
    )
    found, taken = {}, dict[str, str]()
    for view, file in files.items():
        name = _picture(file, view, list(images), folder / "images.txt")
        if name in taken:
            raise InvalidValue(
                f"{folder / 'images.txt'}: the pictures of views {taken[name]!r} and {view!r} ({file}) both "
                f"fit {name!r}; keep the folders that the model names, or give them names of their own"
            )
        taken[name] = view
        row, at = images[name], f"{folder / 'images.txt'}, picture {name!r}"
        if row[8] not in lenses:
            raise InvalidValue(
                f"{at}: camera {row[8]} is not in {folder / 'cameras.txt'}, which has {sorted(lenses)}"
            )
        k, size, lens = _lens(lenses[row[8]], folder / "cameras.txt")
        found[view] = Calibration(k[None], _colmap_pose(row, at)[None], size, lens)
    return found


def _unique(rows: Iterable[tuple[str, list[str]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, row in rows:
        if name in found:
            raise InvalidValue(f"the COLMAP model holds {name!r} twice; export it again")
        found[name] = row
    return found


def _picture(file: Path, view: str, names: list[str], at: Path) -> str:
    """The model's name of a picture: the one with most parts in common, a complete match first."""
    parts = file.absolute().parts[::-1]
    common = {name: _common(parts, PurePosixPath(name).parts[::-1]) for name in names}
    most = max(common.values(), default=(0, False))
    best = [name for name, found in common.items() if found == most]
    if not most[0]:
        raise InvalidValue(f"{at} has no picture named {file.name!r} (view {view!r}); it has {sorted(names)}")
    if len(best) > 1:
        raise InvalidValue(
            f"{at}: the picture {file} (view {view!r}) may be any of {best}; keep the folders that the model "
            "names, or give the pictures names of their own"
        )
    return best[0]


def _common(file: Sequence[str], name: Sequence[str]) -> tuple[int, bool]:
    """Number of equal parts from the start on, and whether they are the whole name."""
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(file, name, strict=False)))
    return equal, equal == len(name)


def _rows(path: Path, columns: int, every: int = 1) -> list[list[str]]:
    """The entries of every n-th line that is no comment; each line must have at least `columns`."""
    try:
        lines = read_lines(path)
    except ValueError as error:
        raise InvalidValue(
            f"{error}; a COLMAP model must be in text form (colmap model_converter --output_type TXT)"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
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
    if min(width, height) < 1 or max(width, height) > _WIDEST or width % 1 or height % 1:
        raise InvalidValue(
            f"{at}: its size is {width:g} x {height:g} pixels, expected whole numbers from 1 to {_WIDEST}"
        )
    fx, fy, (cx, cy) = numbers[0], numbers[focals - 1], numbers[focals : focals + 2]
    coefficients = np.zeros(max(places) + 1 if model == "opencv" and places else 4)
    coefficients[list(places)] = numbers[focals + 2 :]
    lens = Lens.read(_padded(coefficients), model, at) if places else None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (round(height), round(width)), lens


def _padded(coefficients: Float[np.ndarray, "n"]) -> Float[np.ndarray, "m"]:
    """Coefficients filled up with zeros to 4, 5 or 8, the numbers that OpenCV takes."""
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
        numbers = [parse_number(word) for word in words]
    except ValueError as error:
        raise InvalidValue(f"{at}: {error}; export the model again") from error
    if len(numbers) != count:
        raise InvalidValue(f"{at}: expected {count} numbers, got {words}")
    return numbers
