"""Reads LeRobot data sets (2.0, 2.1, 3.0): parquet tables, MP4 files, and cameras from a side file.

    <path>/meta/info.json                       version, rate, features, where data and videos lie
          /meta/episodes.jsonl, tasks.jsonl     version 2: one line each
          /meta/episodes/*/*.parquet            version 3: also which part of which file an episode is
          /meta/tasks.parquet                   version 3
          /data/..., /videos/...                as info.json says
          /meta/cameras.json                    ours: cameras for all episodes, or, where they differ,
          /meta/cameras/episode_000000.json     for one (see `datamodules.cameras.calibration`)

As in LeRobot itself, a frame's picture is the one that its video shows at the frame's timestamp (version 3:
counted from the episode's `from_timestamp`), and its instruction is the one that its `task_index` names.
The format has no calibration and no convention for poses, so the caller names both. Needs the extra `lerobot`
(pyarrow).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Episode, Frame
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import as_path
from ai_wam.files.json_yaml import read_json
from ai_wam.utils.number_checks import check_numbers
from datamodules.cameras.calibration import Calibration
from datamodules.reading.pictures_and_text import check_finite, check_hands, check_stride
from datamodules.reading.rotations import Rotation, to_quaternion
from datamodules.reading.video_files import VideoFile
from datamodules.reading.view_names import Views
from datamodules.sources.lerobot_meta import Entry, Info, read_episodes, read_tasks, tasks_file
from datamodules.sources.lerobot_tables import Column, column_names, numbers, read_columns, whole_numbers

_TIME_TOLERANCE = 0.25  # frames
_TASK = "task_index"


class LeRobotSource:
    """The episodes of a LeRobot data set on disk, in order of their numbers."""

    def __init__(
        self,
        path: str,
        views: Views = None,
        position: str | None = "observation.state[0:3]",
        rotation: str = "observation.state[3:7]",
        rotation_as: Rotation = "quaternion_xyzw",
        openness: str = "observation.state[7]",
        closed_and_open: tuple[float, float] = (0.0, 1.0),
        cameras: str = "meta/cameras.json",
        stride: int = 1,
        split_tasks: bool = False,
        metres_per_unit: float = 1.0,
    ) -> None:
        """Read the lists of episodes.

        Args:
            path: the folder that holds `meta`.
            views: videos by key, such as observation.images.top, or by the last part of it, top; or names for
                them, such as {observation.images.top: front}. Others are left out. All if left out, called by
                the last part, or by as many parts as make the names unique.
            position: column of the tool's absolute position, such as action or observation.state[0:3]; null
                where a data set has none: frames then carry no actions.
            rotation: column of its rotation.
            rotation_as: how it is written.
            openness: column of the gripper.
            closed_and_open: that column's values for a closed and an open gripper.
            cameras: the side file, relative to `path`; its folder may hold `cameras/episode_000000.json` for
                single episodes.
            stride: take every n-th frame.
            split_tasks: make an episode of every run of frames with one task, episode_000000_task0 and so on,
                where the task changes within an episode; such episodes are refused if false. Reads the column
                `task_index` of the whole data set at the start.
            metres_per_unit: of the position; 0.001 where it is in millimetres.

        Raises:
            ValueError: no data set of a known version, or settings that do not fit it.
            ImportError: pyarrow is missing.
        """
        self.path, self.views, self.cameras, self.stride = path, views, cameras, stride
        self.position, self.rotation, self.rotation_as = position, rotation, rotation_as
        self.openness, self.closed_and_open, self.split_tasks = openness, tuple(closed_and_open), split_tasks
        check_numbers("LeRobotSource", above=0, metres_per_unit=metres_per_unit)
        self.metres_per_unit = metres_per_unit
        root = self._root = as_path(path)
        self._info = Info.read(root / "meta" / "info.json")
        check_stride(stride, self._info.hz)
        check_numbers("closed_and_open", closed=closed_and_open[0], open=closed_and_open[1])
        if closed_and_open[0] == closed_and_open[1]:
            raise InvalidValue(f"closed_and_open is {closed_and_open}: the two values must differ")
        self._videos = self._info.videos(views)
        entries = read_episodes(self._info, list(self._videos))
        self._parts = _split(entries) if split_tasks else [_Part(entry, 0, entry.length) for entry in entries]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Episode:
        part, hz = self._parts[index], self._info.hz
        entry = part.entry
        table, tasks = self._table(entry)
        actions = None if self.position is None else self._actions(table, entry)
        seconds = table["timestamp"][:, 0]
        tracks = {name: self._track(key, entry, seconds) for key, name in self._videos.items()}
        if actions is not None:
            poses = {name: track.calibration.world_from_camera for name, track in tracks.items()}
            check_hands(poses, actions[:, :3], f"cameras of {self.path}, episode {entry.number}")
        provenance = {
            "source": "lerobot",
            "version": self._info.version,
            "robot": self._info.robot,
            "episode": entry.number,
        }
        if part.suffix:
            provenance["frames"] = [part.first, part.stop]
        return Episode(
            f"episode_{entry.number:06d}{part.suffix}",
            _frames(tracks, actions, range(part.first, part.stop, self.stride), hz),
            (self._instruction(part, tasks),),
            hz / self.stride,
            provenance,
        )

    @cached_property
    def _tasks(self) -> dict[int, str]:
        return read_tasks(self._info)

    def _instruction(self, part: "_Part", tasks: list[int] | None) -> str:
        """The task of a part's frames; a data set without the column has one per episode."""
        entry, at = part.entry, f"{part.entry.data}, episode {part.entry.number}"
        if tasks is None:
            if len(set(entry.tasks)) > 1:
                raise InvalidValue(
                    f"{at}: meta says the tasks {list(entry.tasks)}, and without the column {_TASK!r} it is "
                    "unknown which frame has which; copy the data set again"
                )
            return entry.tasks[0] if entry.tasks else ""
        found = sorted(set(tasks[part.first : part.stop]))
        if len(found) == len(entry.tasks) == 1 and not tasks_file(self._info).exists():
            return entry.tasks[0]
        if missing := [number for number in found if number not in self._tasks]:
            raise InvalidValue(
                f"{at}: {_TASK} {missing[0]} is not in the table of tasks, which has {sorted(self._tasks)}; "
                "copy the data set again"
            )
        if len(found) > 1:
            raise InvalidValue(
                f"{at}: its frames have the tasks {[self._tasks[number] for number in found]}, an episode "
                "here has one; make an episode of every run of frames with one task (split_tasks: true)"
            )
        return self._tasks[found[0]]

    def _table(self, entry: Entry) -> tuple[dict[str, np.ndarray], list[int] | None]:
        """The numeric columns of an episode, checked against its length, and the task of each frame."""
        wanted = (self.position, self.rotation, self.openness) if self.position is not None else ()
        names = {Column.parse(text).name for text in wanted} | {"timestamp"}
        there = set(column_names(entry.data))
        if missing := names - there:
            raise InvalidValue(
                f"{entry.data}: it has no column {sorted(missing)}; set position, rotation and openness to "
                f"columns of {sorted(there)}, or position to null"
            )
        tasks = {_TASK} & there
        filters = [("episode_index", "==", entry.number)]
        table = read_columns(entry.data, sorted(names | tasks), filters=filters)
        if table.num_rows != entry.length:
            raise InvalidValue(
                f"{entry.data} has {table.num_rows} rows of episode {entry.number}, meta says "
                f"{entry.length}; copy the data set again"
            )
        at = f"{entry.data}, episode {entry.number}, column"
        rows = {name: numbers(table.column(name), f"{at} {name!r}") for name in sorted(names)}
        _check_times(rows["timestamp"], self._info.hz, entry)
        return rows, whole_numbers(table.column(_TASK), f"{at} {_TASK!r}") if tasks else None

    def _actions(self, table: Mapping[str, np.ndarray], entry: Entry) -> Float[np.ndarray, "t 8"]:
        at = f"{entry.data}, episode {entry.number}"
        position = self.metres_per_unit * Column.parse(str(self.position)).of(table, 3, at)
        rotation = Column.parse(self.rotation).of(table, None, at)
        gripper = Column.parse(self.openness).of(table, 1, at)
        for text, values in ((self.position, position), (self.rotation, rotation), (self.openness, gripper)):
            check_finite(values, f"{at}, {text}")
        closed, opened = self.closed_and_open
        openness = (gripper - closed) / (opened - closed)
        return np.concatenate(
            [position, to_quaternion(rotation, self.rotation_as, f"{at}, {self.rotation}"), openness], axis=1
        )

    def _track(self, key: str, entry: Entry, seconds: Float[np.ndarray, "t"]) -> "_Track":
        path, begin = entry.videos[key]
        video = VideoFile.open(path, self._info.hz)
        times = _picture_times(video, begin + seconds, self._info.hz, entry)
        calibration = self._calibration(key, entry)
        calibration.check_size(path.name, video.size, f"cameras of episode {entry.number}, {key!r}")
        return _Track(video, times, calibration)

    def _calibration(self, key: str, entry: Entry) -> Calibration:
        """The camera in the episode's own side file, else in the common one."""
        side = self._root / self.cameras
        own = side.parent / "cameras" / f"episode_{entry.number:06d}.json"
        side = own if own.exists() else side
        names = self._info.names_of(key)
        if not side.exists():
            raise InvalidValue(
                f"{side} is missing: LeRobot data sets hold no calibration. Write it as docs/shards.md "
                f"describes cameras.json, with {[self._info.names_of(k)[-1] for k in self._videos]}, or name "
                "another file by cameras"
            )
        cameras = read_json(side)
        name = next((name for name in names if name in cameras), None)
        if name is None:
            raise InvalidValue(
                f"{side} has cameras {sorted(cameras)} and not {' or '.join(map(repr, names))}; add it, or "
                "change views"
            )
        calibration = Calibration.read(cameras[name], f"{side}, camera {name!r}")
        for what, length in calibration.lengths(name).items():
            if length != entry.length:
                raise InvalidValue(
                    f"{side}: {what} has {length} matrices, episode {entry.number} has {entry.length} "
                    "frames; give one matrix, or one per frame"
                )
        return calibration


@dataclass(frozen=True)
class _Part:
    """Frames of an episode that become an episode here.

    Attributes:
        entry: where the episode lies.
        first: its first frame.
        stop: one beyond the last one.
        suffix: of the key.
    """

    entry: Entry
    first: int
    stop: int
    suffix: str = ""


@dataclass(frozen=True)
class _Track:
    """One camera's pictures of an episode, and when the video shows each."""

    video: VideoFile
    times: Float[np.ndarray, "t"]
    calibration: Calibration


def _split(entries: list[Entry]) -> list[_Part]:
    """An episode of every run of frames with one task."""
    parts = []
    for file, group in groupby(entries, key=lambda entry: entry.data):
        if _TASK not in column_names(file):
            raise InvalidValue(f"{file} has no column {_TASK!r} to split by; set split_tasks to false")
        table = read_columns(file, ["episode_index", _TASK])
        episodes, tasks = (
            np.array(whole_numbers(table.column(name), f"{file}, column {name!r}"))
            for name in ("episode_index", _TASK)
        )
        for entry in group:
            own = tasks[episodes == entry.number]
            edges = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), entry.length]
            suffixes = [f"_task{run}" for run in range(len(edges) - 1)] if len(edges) > 2 else [""]
            runs = zip(edges, edges[1:], suffixes, strict=False)
            parts += [_Part(entry, first, stop, suffix) for first, stop, suffix in runs]
    return parts


def _check_times(column: Float[np.ndarray, "t n"], fps: float, entry: Entry) -> None:
    """Timestamps rise evenly; they may begin anywhere."""
    at, seconds = f"{entry.data}, episode {entry.number}", column[:, 0]
    if column.shape[1] != 1:
        raise InvalidValue(f"{at}: timestamp has {column.shape[1]} numbers per frame, expected 1")
    check_finite(column, f"{at}, timestamp")
    off = np.abs((seconds - seconds[0]) * fps - np.arange(len(seconds)))
    if off.max() > _TIME_TOLERANCE:
        frame = int(off.argmax())
        raise InvalidValue(
            f"{at}, frame {frame}: timestamp {seconds[frame]:g} s does not fit {fps:g} frames per second "
            f"from {seconds[0]:g} s on; rows are missing, or fps in info.json is wrong: copy the data again"
        )


def _picture_times(
    video: VideoFile, seconds: Float[np.ndarray, "t"], hz: float, entry: Entry
) -> Float[np.ndarray, "t"]:
    """When the video shows each frame's picture: at the frame's time in the file, or near it."""
    shown = video.shown
    nearest = np.searchsorted((shown[1:] + shown[:-1]) / 2, seconds)
    if nearest[0] + len(seconds) > len(shown):
        raise InvalidValue(
            f"{video.path} has {len(shown)} pictures, episode {entry.number} needs {len(seconds)} from "
            f"{seconds[0]:g} s on; copy the data set again"
        )
    off = np.abs(seconds - shown[nearest]) * hz
    if off.max() > _TIME_TOLERANCE:
        frame = int(off.argmax())
        raise InvalidValue(
            f"{video.path}: episode {entry.number}, frame {frame} belongs to {seconds[frame]:g} s of the "
            f"video, the nearest picture is shown at {shown[nearest[frame]]:g} s; copy the data set again"
        )
    return shown[nearest]


def _frames(
    tracks: Mapping[str, _Track], actions: np.ndarray | None, chosen: range, hz: float
) -> Iterator[Frame]:
    videos = [
        track.video.images(len(chosen), chosen.step, float(track.times[chosen.start]))
        for track in tracks.values()
    ]
    for number, images in zip(chosen, zip(*videos, strict=True), strict=True):
        views = {
            name: track.calibration.view(image, number)
            for (name, track), image in zip(tracks.items(), images, strict=True)
        }
        yield Frame(views, None if actions is None else actions[number], (number - chosen.start) / hz)
