"""Reads a user's own episodes from plain files, one folder per episode.

    recordings/
        pick-0001/               one folder per episode; its name is the key
            front.mp4            one video per camera, any codec, equally many frames
            wrist.mp4
            cameras.json         {"front": {"K": 3x3, "size": [height, width], "camera_to_world": 4x4}, ...}
            actions.csv          x,y,z,qx,qy,qz,qw,openness: one row per frame; leave out if not recorded
            instruction.txt      one phrasing per line
            meta.json            {"hz": 20, ...}: frames per second; the rest becomes provenance

Row i of every file belongs to frame i. In `cameras.json` a camera has exactly one of `camera_to_world` and
`world_to_camera` (OpenCV axes: x right, y down, z forward; metres); matrices are 4x4, or one per frame where
the camera moves.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Episode, Frame
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.json_yaml import read_json
from datamodules.cameras.calibration import Calibration
from datamodules.reading.pictures_and_text import check_hands, not_finite, parse_number, read_lines
from datamodules.reading.video_files import VideoFile
from datamodules.reading.view_names import Views, chosen_views, unrenamed

_OWN = frozenset({"source", "episode"})  # keys of the provenance that say where it was read
INSPECTION = "inspection"  # where `ai-wam inspect` writes by default
COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw", "openness")


class FolderSource:
    """The episodes of a folder in the layout above, in the order of their names."""

    def __init__(self, path: str, views: Views = None) -> None:
        """List the episodes.

        Args:
            path: the folder that holds one folder per episode.
            views: cameras, such as front, or names for them, such as {cam0: front}; all if left out.

        Raises:
            ValueError: no such folder, or no episodes in it.
        """
        self.path, self.views = path, views
        root = as_path(path)
        self._folders = sorted(f for f in root.iterdir() if _is_episode(f)) if root.is_dir() else []
        known = [folder / name for folder in self._folders for name in ("meta.json", "cameras.json")]
        if not any(path.exists() for path in known):
            raise InvalidValue(
                f"{path} holds no episode folders; expected {path}/<episode>/ with <view>.mp4, cameras.json, "
                "instruction.txt, meta.json and (if recorded) actions.csv"
            )

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Episode:
        folder = self._folders[index]
        hz, meta = _read_meta(folder / "meta.json")
        entries = read_json(folder / "cameras.json")
        names = chosen_views(self.views, unrenamed(list(entries)), folder / "cameras.json")
        cameras = {ours: _Camera.read(name, folder, entries[name], hz) for name, ours in names.items()}
        _check_videos(folder, entries)
        actions = _read_actions(folder / "actions.csv")
        _check_lengths(folder, cameras, actions)
        if actions is not None:
            poses = {name: camera.calibration.world_from_camera for name, camera in cameras.items()}
            check_hands(poses, actions[:, :3], str(folder / "cameras.json"))
        provenance = {**meta, "source": "folder", "episode": folder.name}
        return Episode(
            folder.name,
            _frames(cameras, actions, hz),
            _instructions(folder),
            hz,
            provenance,
        )


def _is_episode(folder: AnyPath) -> bool:
    """Whether a folder is an episode, not hidden and not the pictures of `ai-wam inspect --camera_check`."""
    if not folder.is_dir() or folder.name[0] == ".":
        return False
    return folder.name != INSPECTION or (folder / "meta.json").exists()


def _read_meta(path: AnyPath) -> tuple[float, dict[str, Any]]:
    """Frames per second, and the rest, which becomes provenance."""
    meta = read_json(path)
    if (key := not_finite(meta)) is not None:
        raise InvalidValue(f"{path}: the value of {key!r} is NaN or infinity; give a number, text or null")
    hz = meta.pop("hz", None)
    if isinstance(hz, bool) or not isinstance(hz, int | float) or not hz > 0:
        raise InvalidValue(f'{path}: "hz" is {hz!r}, expected frames per second above 0')
    if taken := sorted(_OWN & set(meta)):
        raise InvalidValue(f"{path}: the keys {taken} are written by the reader; give yours another name")
    return float(hz), meta


@dataclass(frozen=True)
class _Camera:
    """One entry of cameras.json and its video."""

    name: str
    calibration: Calibration
    video: VideoFile

    @classmethod
    def read(cls, name: str, folder: AnyPath, entry: Any, hz: float) -> "_Camera":
        at = f"{folder / 'cameras.json'}, camera {name!r}"
        if not name or set(name) & set("/\\"):
            raise InvalidValue(f"{at}: the name of a camera is its video's file name without .mp4, no path")
        video = folder / f"{name}.mp4"
        calibration = Calibration.read(entry, at)
        if not video.exists():
            raise InvalidValue(f"{at}: its video {video} is missing; add it or remove the camera")
        file = VideoFile.open(video, hz)
        calibration.check_size(video.name, file.size, at)
        return cls(name, calibration, file)


def _check_videos(folder: AnyPath, cameras: Mapping[str, Any]) -> None:
    extra = sorted(path.name for path in folder.glob("[!.]*.mp4") if path.stem not in cameras)
    if not cameras or extra:
        raise InvalidValue(
            f"{folder / 'cameras.json'} describes cameras {sorted(cameras)}, but the folder also holds "
            f"{extra}; every video needs its calibration"
        )


def _check_lengths(
    folder: AnyPath, cameras: Mapping[str, _Camera], actions: Float[np.ndarray, "t 8"] | None
) -> None:
    """Check that all files have the same number of frames."""
    lengths = {f"{camera.name}.mp4": camera.video.frames for camera in cameras.values()}
    for camera in cameras.values():
        lengths |= camera.calibration.lengths(f"cameras.json {camera.name}")
    if actions is not None:
        lengths["actions.csv"] = len(actions)
    if len(set(lengths.values())) > 1:
        raise InvalidValue(
            f"{folder}: the files have different numbers of frames: {lengths}; row i belongs to frame i"
        )


def _read_actions(path: AnyPath) -> Float[np.ndarray, "t 8"] | None:
    if not path.exists():
        return None
    lines = read_lines(path)
    while lines and not lines[-1].strip():  # editors end files with blank lines
        lines.pop()
    head = lines[0] if lines else ""
    if tuple(_cells(head, f"{path}, line 1")) != COLUMNS:
        raise InvalidValue(f"{path}: the first line must be {','.join(COLUMNS)}, got {head!r}")
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]
    return np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))


def _cells(line: str, at: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise InvalidValue(f"{at}: {error}; write the table again") from error


def _row(line: str, at: str) -> list[float]:
    cells = _cells(line, at)
    if len(cells) != len(COLUMNS):
        raise InvalidValue(f"{at}: {line!r} has {len(cells)} cells, expected the header's {len(COLUMNS)}")
    try:
        return [parse_number(cell) for cell in cells]
    except ValueError as error:
        raise InvalidValue(
            f"{at}: {error}; correct the row, or leave the file out if the actions were not recorded"
        ) from error


def _instructions(folder: AnyPath) -> tuple[str, ...]:
    path = folder / "instruction.txt"
    if not path.exists():
        raise InvalidValue(
            f"{path} is missing; write one phrasing per line, or an empty file where none is known"
        )
    return tuple(line.strip() for line in read_lines(path) if line.strip()) or ("",)


def _frames(
    cameras: Mapping[str, _Camera], actions: Float[np.ndarray, "t 8"] | None, hz: float
) -> Iterator[Frame]:
    videos = [camera.video.images() for camera in cameras.values()]
    for number, images in enumerate(zip(*videos, strict=True)):
        views = {
            name: camera.calibration.view(image, number)
            for (name, camera), image in zip(cameras.items(), images, strict=True)
        }
        yield Frame(views, None if actions is None else actions[number], number / hz)
