"""LeRobot data sets of versions 2.0, 2.1 and 3.0: parquet tables, MP4 files, and cameras from a side file.

    <path>/meta/info.json                       version, rate, features, where data and videos lie
          /meta/episodes.jsonl, tasks.jsonl     version 2: one line each
          /meta/episodes/*/*.parquet            version 3: also which part of which file an episode is
          /data/..., /videos/...                as info.json says
          /meta/cameras.json                    ours: cameras for all episodes, or, where they differ,
          /meta/cameras/episode_000000.json     for one (see `datamodules.calibration`)

The format knows no calibration and no kind of pose, so both are the caller's to name. Needs the extra
`lerobot` (pyarrow).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.documents import parse_json, read_json, read_text
from ai_wam.errors import InvalidType, InvalidValue, MissingPackage
from ai_wam.files import AnyPath, as_path
from ai_wam.types import Episode, Frame, View
from datamodules.calibration import Calibration
from datamodules.reading import check_finite, check_hands, check_stride
from datamodules.rotations import Rotation, to_quaternion
from datamodules.video_files import VideoFile
from datamodules.view_names import Views, chosen_views

VERSIONS = ("v2.0", "v2.1", "v3.0")
_COLUMN = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>\d+)(:(?P<stop>\d+))?\])?")
_TIME_TOLERANCE = 0.5  # frames


def parquet() -> Any:
    """The module that reads and writes parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(
            "LeRobot data sets are parquet files, which need pyarrow: pip install 'ai-wam[lerobot]'"
        ) from error
    return pyarrow.parquet


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
    ) -> None:
        """Read the lists of episodes.

        Args:
            path: the folder that holds `meta`.
            views: videos such as observation.images.top, called by the last part of their names, or names for
                them, such as {observation.images.top: front}; others are left out. All if left out.
            position: column of the tool's position in metres, such as action or observation.state[0:3]; null
                where a data set has none: frames then carry no actions.
            rotation: column of its rotation.
            rotation_as: how it is written.
            openness: column of the gripper.
            closed_and_open: that column's values for a closed and an open gripper.
            cameras: the side file, relative to `path`; its folder may hold `cameras/episode_000000.json` for
                single episodes.
            stride: take every n-th frame.

        Raises:
            ValueError: no data set of a known version, or settings that do not fit it.
            ImportError: pyarrow is missing.
        """
        self.path, self.views, self.cameras, self.stride = path, views, cameras, stride
        self.position, self.rotation, self.rotation_as = position, rotation, rotation_as
        self.openness, self.closed_and_open = openness, tuple(closed_and_open)
        root = self._root = as_path(path)
        self._info = _read_info(root / "meta" / "info.json")
        self._hz = float(self._info["fps"])
        check_stride(stride, self._hz)
        if closed_and_open[0] == closed_and_open[1]:
            raise InvalidValue(f"closed_and_open is {closed_and_open}: the two values must differ")
        self._videos = _video_names(root / "meta" / "info.json", self._info, views)
        reader = _episodes_3 if self._info["codebase_version"] == "v3.0" else _episodes_2
        self._episodes = reader(root, self._info, list(self._videos))
        if (said := self._info.get("total_episodes", len(self))) != len(self):
            raise InvalidValue(
                f"{root / 'meta' / 'info.json'} says {said} episodes, there are {len(self)}; copy it again"
            )

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        entry, hz = self._episodes[index], self._hz
        table = self._table(entry)
        actions = None if self.position is None else self._actions(table, entry)
        tracks = {name: self._track(key, entry) for key, name in self._videos.items()}
        if actions is not None:
            poses = {name: track.calibration.world_from_camera for name, track in tracks.items()}
            check_hands(poses, actions[:, :3], f"cameras of {self.path}, episode {entry.number}")
        provenance = {
            "source": "lerobot",
            "version": self._info["codebase_version"],
            "robot": self._info.get("robot_type"),
            "episode": entry.number,
        }
        return Episode(
            f"episode_{entry.number:06d}",
            _frames(tracks, actions, entry.length, self.stride, hz),
            entry.tasks or ("",),
            hz / self.stride,
            provenance,
        )

    def _table(self, entry: "_Entry") -> dict[str, np.ndarray]:
        """The numeric columns of an episode, checked against its length."""
        wanted = [text for text in (self.position, self.rotation, self.openness) if self.position is not None]
        names = {_column(str(text))[0] for text in wanted} | {"timestamp"}
        try:
            with entry.data.open("rb") as stream:
                there = set(parquet().read_schema(stream).names)
            if missing := names - there:
                raise InvalidValue(
                    f"it has no column {sorted(missing)}; set position, rotation and openness to columns of "
                    f"{sorted(there)}, or position to null"
                )
            filters = [("episode_index", "==", entry.number)]
            with entry.data.open("rb") as stream:
                table = parquet().read_table(stream, columns=sorted(names), filters=filters)
        except (OSError, ValueError) as error:
            raise InvalidValue(f"{entry.data}: {error}; or copy the file again") from error
        if table.num_rows != entry.length:
            raise InvalidValue(
                f"{entry.data} has {table.num_rows} rows of episode {entry.number}, meta says "
                f"{entry.length}; copy the data set again"
            )
        rows = {name: np.array(table.column(name).to_pylist(), dtype=np.float64) for name in sorted(names)}
        _check_times(rows["timestamp"].reshape(-1), self._hz, entry)
        return rows

    def _actions(self, table: Mapping[str, np.ndarray], entry: "_Entry") -> Float[np.ndarray, "t 8"]:
        at = f"{entry.data}, episode {entry.number}"
        position = _select(table, str(self.position), 3, at)
        rotation = _select(table, self.rotation, None, at)
        gripper = _select(table, self.openness, 1, at)
        for text, values in ((self.position, position), (self.rotation, rotation), (self.openness, gripper)):
            check_finite(values, f"{at}, {text}")
        closed, opened = self.closed_and_open
        openness = (gripper - closed) / (opened - closed)
        return np.concatenate(
            [position, to_quaternion(rotation, self.rotation_as, f"{at}, {self.rotation}"), openness], axis=1
        )

    def _track(self, key: str, entry: "_Entry") -> "_Track":
        path, begin = entry.videos[key]
        video = VideoFile.open(path, self._hz)
        if round(begin * self._hz) + entry.length > video.frames:
            raise InvalidValue(
                f"{path} has {video.frames} pictures, episode {entry.number} needs {entry.length} from "
                f"{begin:g} s on; copy the data set again"
            )
        calibration = self._calibration(_short(key), entry)
        calibration.check_size(path.name, video.size, f"cameras of episode {entry.number}, {_short(key)!r}")
        return _Track(video, begin, calibration)

    def _calibration(self, name: str, entry: "_Entry") -> Calibration:
        """The camera in the episode's own side file, else in the common one; by its name by default."""
        side = self._root / self.cameras
        own = side.parent / "cameras" / f"episode_{entry.number:06d}.json"
        side = own if own.exists() else side
        if not side.exists():
            raise InvalidValue(
                f"{side} is missing: LeRobot data sets hold no calibration. Write it as docs/shards.md "
                f"describes cameras.json, with {[_short(key) for key in self._videos]}, or name another file "
                "by cameras"
            )
        cameras = read_json(side)
        if name not in cameras:
            raise InvalidValue(
                f"{side} has cameras {sorted(cameras)} and not {name!r}; add it, or change views"
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
class _Entry:
    """Where an episode lies.

    Attributes:
        number: its `episode_index`.
        length: number of frames.
        tasks: its instructions.
        data: parquet file with its rows.
        videos: file and first second by key.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    data: AnyPath
    videos: Mapping[str, tuple[AnyPath, float]]


@dataclass(frozen=True)
class _Track:
    """One camera's pictures of an episode."""

    video: VideoFile
    begin: float
    calibration: Calibration


def _read_info(path: AnyPath) -> dict[str, Any]:
    info = read_json(path)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise InvalidValue(
            f"{path}: codebase_version is {version!r}, known are {', '.join(VERSIONS)}; convert the data set "
            "with LeRobot's own script of that version first"
        )
    if missing := {"fps", "features", "data_path", "video_path"} - set(info):
        raise InvalidValue(f"{path} lacks {sorted(missing)}; copy the data set again")
    if not isinstance(info["fps"], int | float) or not isinstance(info["features"], dict):
        raise InvalidValue(f"{path}: fps must be a number and features an object; copy the data set again")
    if odd := [name for name, feature in info["features"].items() if not isinstance(feature, dict)]:
        raise InvalidValue(f"{path}: the feature {odd[0]!r} must be an object; copy the data set again")
    places = [
        "data_path",
        *["video_path"] * any(f.get("dtype") == "video" for f in info["features"].values()),
    ]
    if odd := [name for name in places if not isinstance(info[name], str)]:
        raise InvalidValue(f"{path}: {odd[0]} is {info[odd[0]]!r}, must be a text; copy the data set again")
    if not isinstance(size := info.get("chunks_size", 1), int) or size < 1:
        raise InvalidValue(f"{path}: chunks_size is {size!r}, must be at least 1; copy the data set again")
    return info


def _short(key: str) -> str:
    """What a video is called by default, and in the side files: top of observation.images.top."""
    return key.rpartition(".")[2]


def _video_names(path: AnyPath, info: Mapping[str, Any], views: Views) -> dict[str, str]:
    """Our name of every video that is read, by its key."""
    kinds = {key: feature.get("dtype") for key, feature in info["features"].items()}
    there = {key: _short(key) for key, kind in kinds.items() if kind == "video"}
    try:
        return chosen_views(views, there, path)
    except ValueError as error:
        pictures = [key for key, kind in kinds.items() if kind == "image"]
        if not pictures:
            raise
        raise InvalidValue(
            f"{error}. {pictures} are pictures inside parquet files, which are not read: encode them as "
            "videos with LeRobot first"
        ) from error


def _episodes_2(root: AnyPath, info: Mapping[str, Any], keys: Sequence[str]) -> list[_Entry]:
    path, entries = root / "meta" / "episodes.jsonl", []
    for number, line in enumerate(_lines(path)):
        try:
            index, length, tasks = int(line["episode_index"]), int(line["length"]), tuple(line["tasks"])
            if not all(isinstance(task, str) for task in tasks):
                raise InvalidType(f"the tasks {tasks} must be texts")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidValue(f"{path}, line {number + 1}: {error!r}; copy the data set again") from error
        where = {"episode_index": index, "episode_chunk": index // info.get("chunks_size", 1000)}
        videos = {key: (root / info["video_path"].format(video_key=key, **where), 0.0) for key in keys}
        entries.append(_Entry(index, length, tasks, root / info["data_path"].format(**where), videos))
    return sorted(entries, key=lambda entry: entry.number)


def _lines(path: AnyPath) -> list[Any]:
    try:
        return [parse_json(line, str(path)) for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{path} cannot be read as lines of JSON: {error}") from error


def _episodes_3(root: AnyPath, info: Mapping[str, Any], keys: Sequence[str]) -> list[_Entry]:
    files: list[AnyPath] = sorted((root / "meta" / "episodes").glob("*/*.parquet"), key=str)
    entries = []
    names = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    names += [
        f"videos/{key}/{what}" for key in keys for what in ("chunk_index", "file_index", "from_timestamp")
    ]
    for file in files:
        try:
            with file.open("rb") as stream:
                rows = parquet().read_table(stream, columns=names).to_pylist()
        except (OSError, ValueError) as error:
            raise InvalidValue(f"{file}: {error}; copy the data set again") from error
        if rows and (missing := set(names) - set(rows[0])):
            raise InvalidValue(f"{file} has no column {sorted(missing)}; copy the data set again")
        entries += [_entry_3(root, info, keys, row) for row in rows]
    if not entries:
        raise InvalidValue(f"{root / 'meta' / 'episodes'} holds no episodes; copy the data set again")
    return sorted(entries, key=lambda entry: entry.number)


def _entry_3(root: AnyPath, info: Mapping[str, Any], keys: Sequence[str], row: Mapping[str, Any]) -> _Entry:
    def place(of: str) -> dict[str, int]:
        return {"chunk_index": row[f"{of}/chunk_index"], "file_index": row[f"{of}/file_index"]}

    videos = {
        key: (
            root / info["video_path"].format(video_key=key, **place(f"videos/{key}")),
            float(row[f"videos/{key}/from_timestamp"]),
        )
        for key in keys
    }
    data = root / info["data_path"].format(**place("data"))
    return _Entry(int(row["episode_index"]), int(row["length"]), tuple(row["tasks"]), data, videos)


def _column(text: str) -> tuple[str, slice]:
    """Name and part of a column: `action`, `action[7]` or `action[0:3]`."""
    found = _COLUMN.fullmatch(text)
    if found is None:
        raise InvalidValue(f"column {text!r}: expected a name such as action, action[7] or action[0:3]")
    if found["first"] is None:
        return found["name"], slice(None)
    first = int(found["first"])
    return found["name"], slice(first, int(found["stop"]) if found["stop"] else first + 1)


def _select(
    table: Mapping[str, np.ndarray], text: str, width: int | None, at: str
) -> Float[np.ndarray, "t n"]:
    name, part = _column(text)
    values = table[name].reshape(len(table[name]), -1)
    chosen = values[:, part]
    if (width is not None and chosen.shape[1] != width) or not chosen.shape[1]:
        raise InvalidValue(
            f"{at}: {text} gives {chosen.shape[1]} of {values.shape[1]} numbers per row, expected "
            f"{width or 'some'}; correct the part in brackets"
        )
    return chosen


def _check_times(seconds: Float[np.ndarray, "t"], fps: float, entry: _Entry) -> None:
    off = np.abs((seconds - seconds[0]) * fps - np.arange(len(seconds)))
    if off.max() > _TIME_TOLERANCE:
        frame = int(off.argmax())
        raise InvalidValue(
            f"{entry.data}, episode {entry.number}, frame {frame}: timestamp {seconds[frame]:g} s does not "
            f"fit {fps:g} frames per second; rows are missing, copy the data set again"
        )


def _frames(
    tracks: Mapping[str, _Track], actions: np.ndarray | None, length: int, stride: int, hz: float
) -> Iterator[Frame]:
    numbers = range(0, length, stride)
    videos = [track.video.images(len(numbers), stride, track.begin) for track in tracks.values()]
    for number, images in zip(numbers, zip(*videos, strict=True), strict=True):
        views = {
            name: View(image, *track.calibration.at(number))
            for (name, track), image in zip(tracks.items(), images, strict=True)
        }
        yield Frame(views, None if actions is None else actions[number], number / hz)
