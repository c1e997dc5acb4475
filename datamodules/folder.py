"""Bring your own robot: plain files in, episodes out.

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

from ai_wam.documents import read_json, read_text
from ai_wam.errors import InvalidValue
from ai_wam.files import AnyPath, as_path
from ai_wam.types import Episode, Frame, View
from datamodules.calibration import Calibration
from datamodules.reading import check_hands
from datamodules.video_files import VideoFile
from datamodules.view_names import Views, as_called, chosen_views

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
        self._folders = (
            sorted(f for f in root.iterdir() if f.is_dir() and f.name[0] != ".") if root.is_dir() else []
        )
        if not self._folders:
            raise InvalidValue(
                f"{path} holds no episode folders; expected {path}/<episode>/ with <view>.mp4, cameras.json, "
                "instruction.txt, meta.json and (if recorded) actions.csv"
            )

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Episode:
        folder = self._folders[index]
        meta = read_json(folder / "meta.json")
        hz = meta.pop("hz", None)
        if isinstance(hz, bool) or not isinstance(hz, int | float) or not hz > 0:
            raise InvalidValue(f'{folder / "meta.json"}: "hz" is {hz!r}, expected frames per second above 0')
        entries = read_json(folder / "cameras.json")
        names = chosen_views(self.views, as_called(list(entries)), folder / "cameras.json")
        cameras = {ours: _Camera.read(name, folder, entries[name], float(hz)) for name, ours in names.items()}
        _check_videos(folder, entries)
        actions = _read_actions(folder / "actions.csv")
        _check_lengths(folder, cameras, actions)
        if actions is not None:
            poses = {name: camera.calibration.world_from_camera for name, camera in cameras.items()}
            check_hands(poses, actions[:, :3], str(folder / "cameras.json"))
        provenance = {**meta, "source": "folder", "episode": folder.name}
        return Episode(
            folder.name,
            _frames(cameras, actions, float(hz)),
            _instructions(folder),
            float(hz),
            provenance,
        )


@dataclass(frozen=True)
class _Camera:
    """One entry of cameras.json and its video."""

    name: str
    calibration: Calibration
    video: VideoFile

    @classmethod
    def read(cls, name: str, folder: AnyPath, entry: Any, hz: float) -> "_Camera":
        at = f"{folder / 'cameras.json'}, camera {name!r}"
        video = folder / f"{name}.mp4"
        calibration = Calibration.read(entry, at)
        if not video.exists():
            raise InvalidValue(f"{at}: its video {video} is missing; add it or remove the camera")
        file = VideoFile.open(video, hz)
        calibration.check_size(video.name, file.size, at)
        return cls(name, calibration, file)


def _check_videos(folder: AnyPath, cameras: Mapping[str, Any]) -> None:
    extra = sorted(path.name for path in folder.glob("*.mp4") if path.stem not in cameras)
    if not cameras or extra:
        raise InvalidValue(
            f"{folder / 'cameras.json'} describes cameras {sorted(cameras)}, but the folder also holds "
            f"{extra}; every video needs its calibration"
        )


def _check_lengths(
    folder: AnyPath, cameras: Mapping[str, _Camera], actions: Float[np.ndarray, "t 8"] | None
) -> None:
    """All files must tell of the same frames."""
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
    rows = list(csv.reader(read_text(path).splitlines()))
    if not rows or tuple(cell.strip() for cell in rows[0]) != COLUMNS:
        found = ",".join(rows[0])[:100] if rows else ""
        raise InvalidValue(f"{path}: the first line must be {','.join(COLUMNS)}, got {found!r}")
    actions = np.empty((len(rows) - 1, len(COLUMNS)))
    for number, row in enumerate(rows[1:]):
        try:
            actions[number] = [float(cell) for cell in row]
        except ValueError as error:
            raise InvalidValue(
                f"{path}, line {number + 2}: expected {len(COLUMNS)} numbers, got {row}: {error}"
            ) from error
        if not np.isfinite(actions[number]).all():
            raise InvalidValue(
                f"{path}, line {number + 2}: {row} is not finite; correct the row, or leave the file out if "
                "the actions were not recorded"
            )
    return actions


def _instructions(folder: AnyPath) -> tuple[str, ...]:
    path = folder / "instruction.txt"
    if not path.exists():
        raise InvalidValue(
            f"{path} is missing; write one phrasing per line, or an empty file where none is known"
        )
    lines = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    return lines or ("",)


def _frames(
    cameras: Mapping[str, _Camera], actions: Float[np.ndarray, "t 8"] | None, hz: float
) -> Iterator[Frame]:
    videos = [camera.video.images() for camera in cameras.values()]
    for number, images in enumerate(zip(*videos, strict=True)):
        views = {
            name: View(image, *camera.calibration.at(number))
            for (name, camera), image in zip(cameras.items(), images, strict=True)
        }
        yield Frame(views, None if actions is None else actions[number], number / hz)
