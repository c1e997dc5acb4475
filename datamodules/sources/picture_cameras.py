"""Reads camera files of a user's own pictures: this project's JSON, RLBench's `misc`, a COLMAP text model.

docs/predict.md describes them. Each becomes a `Calibration` in OpenCV's axes, for the pictures as they are.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import read_json
from datamodules.cameras.calibration import Calibration
from datamodules.cameras.colmap import read_colmap
from datamodules.reading.pictures_and_text import is_turned
from datamodules.sources.rlbench import opencv_cameras

_RLBENCH = ("_camera_intrinsics", "_camera_extrinsics")


def read_cameras(
    path: Path,
    files: Mapping[str, Path],
    sizes: Mapping[str, tuple[int, int]],
    others: Collection[str] = (),
) -> dict[str, Calibration]:
    """The calibration of every view, for pictures of the sizes given.

    Args:
        path: a JSON file, or a folder with COLMAP's cameras.txt and images.txt.
        files: the picture of each view; COLMAP knows views by the pictures' names.
        sizes: height and width of each picture.
        others: views without a picture, which a JSON file may describe too.

    Raises:
        ValueError: a file that cannot be read, has other views, belongs to pictures of another shape, or
            holds what is no camera.
    """
    if path.is_dir():
        check_not_turned(files)
    found = read_colmap(path, files) if path.is_dir() else _json(path, files, sizes, others)
    checked = {}
    for view, calibration in found.items():
        at = f"{path}, camera {view!r}"
        calibration.check(at)
        checked[view] = calibration.scaled(sizes[view], at)
    return checked


def check_not_turned(files: Mapping[str, Path]) -> None:
    """Refuse pictures that a viewer turns: COLMAP's cameras belong to pictures as they are stored.

    Raises:
        ValueError: a picture with an EXIF orientation.
    """
    for view, file in files.items():
        if is_turned(file):
            raise InvalidValue(
                f"view {view!r}: {file} has an EXIF orientation, which COLMAP ignores: its camera is that "
                "of the picture as stored. Save the pictures upright without it (mogrify -auto-orient) and "
                "reconstruct again"
            )


def _json(
    path: Path,
    files: Mapping[str, Path],
    sizes: Mapping[str, tuple[int, int]],
    others: Collection[str],
) -> dict[str, Calibration]:
    content = read_json(path)
    if any(key.endswith(_RLBENCH) for key in content):
        return _rlbench(content, path, sizes)
    return _own({view: content[view] for view in content if view not in others}, path, files)


def _own(content: Mapping[str, Any], path: Path, files: Mapping[str, Path]) -> dict[str, Calibration]:
    if set(content) != set(files):
        raise InvalidValue(
            f"{path} describes {len(content)} cameras {sorted(content)}, but there are {len(files)} pictures "
            f"{sorted(files)}; every picture needs its camera under the same name, and no other"
        )
    found = {view: Calibration.read(content[view], f"{path}, camera {view!r}") for view in files}
    for view, calibration in found.items():
        if lengths := calibration.lengths(view):
            raise InvalidValue(f"{path}: {lengths} matrices for one picture; give one")
    return found


def _rlbench(
    content: Mapping[str, Any], path: Path, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Calibration]:
    """RLBench's `misc`; its principal point is the middle of the picture, which gives the resolution."""
    found = {}
    for view in sizes:
        k, pose = (_matrix(content, f"{view}{key}", path) for key in _RLBENCH)
        cameras = opencv_cameras(k[None], pose[None], f"{path}, camera {view!r}")
        size = (round(2 * k[1, 2]), round(2 * k[0, 2]))
        found[view] = Calibration(cameras.intrinsics.numpy(), cameras.world_from_camera.numpy(), size)
    return found


def _matrix(content: Mapping[str, Any], key: str, path: Path) -> Float[np.ndarray, "n n"]:
    if key not in content:
        there = sorted(name for name in content if name.endswith(_RLBENCH))
        raise InvalidValue(f"{path} lacks {key!r}; it has {there}")
    try:
        matrix = np.asarray(content[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{path}, {key}: {error}") from error
    wanted = (3, 3) if key.endswith(_RLBENCH[0]) else (4, 4)
    if matrix.shape != wanted:
        raise InvalidValue(
            f"{path}, {key}: expected {wanted[0]}x{wanted[1]} numbers, got shape {matrix.shape}"
        )
    return matrix
