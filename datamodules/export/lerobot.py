"""Writes episodes as a LeRobot data set of version 3.0, one data file and one video per camera and episode.

`observation.state` is the tool's pose and the gripper's openness (x y z, quaternion x y z w, openness);
`action` is the same one frame later, the last one repeated; `action.confidence` is in [0, 1], 1 where the
action was measured. Cameras go into `meta/cameras/episode_000000.json`, since the format has no place for
them. Of several phrasings the first is kept: LeRobot reads several tasks as several steps.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Episode, Frame
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import atomic_file, file_name, write_json
from ai_wam.video import VideoEncoding, VideoWriter
from datamodules.export.lerobot_statistics import Numbers, Pictures
from datamodules.reading.rotations import continuous_actions
from datamodules.sources.lerobot_tables import parquet

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
CHUNK = 1000  # files per folder
NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw", "openness")


@dataclass
class _Rows:
    """Rows and statistics of the whole set so far."""

    episodes: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, Numbers] = field(default_factory=dict)
    pictures: dict[str, Pictures] = field(default_factory=dict)
    views: dict[str, tuple[int, int]] = field(default_factory=dict)
    hz: float = 0.0
    frames: int = 0
    acts: bool = True


class LeRobotWriter:
    """Writes episodes of one rate and one set of views."""

    def __init__(self, folder: Path, encoding: VideoEncoding) -> None:
        self.folder, self.encoding = folder, encoding
        self._rows = _Rows()
        parquet()  # a missing package is an error now, not after the first video

    def write(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            ValueError: another rate, other views or other sizes than the first one's, or actions where the
                first had none.
        """
        number, rows = len(self._rows.episodes), self._rows
        videos: dict[str, VideoWriter] = {}
        matrices: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        actions: list[np.ndarray] = []
        for frame in episode.frames:
            for name, view in frame.views.items():
                if name not in videos:
                    file_name(name, f"episode {episode.key!r}: a view")
                    videos[name] = VideoWriter(view.image.shape[:2], episode.hz, self.encoding)
                videos[name].add(view.image)
                matrices.setdefault(name, []).append((view.intrinsics, view.world_from_camera))
                rows.pictures.setdefault(f"observation.images.{name}", Pictures()).add(view.image)
            actions += _action(frame)
        length = next(iter(videos.values())).frames
        self._check_alike(episode, {name: video.size for name, video in videos.items()}, bool(actions))
        place = {"chunk_index": number // CHUNK, "file_index": number % CHUNK}
        self._write_files(number, episode.key, place, videos, matrices)
        table = self._table(episode, number, length, actions)
        _write_table(table, self.folder / DATA.format(**place))
        rows.episodes.append(_episode_row(episode, number, length, rows.frames, place, list(videos)))
        rows.frames += length

    def close(self) -> None:
        """Write the set's tables, statistics and info."""
        rows, meta = self._rows, self.folder / "meta"
        _write_table(_table_of(rows.episodes), self.folder / EPISODES)
        _write_table(_tasks(rows.tasks), meta / "tasks.parquet")
        statistics = {key: of.to_json() for key, of in rows.pictures.items()}
        statistics |= {key: of.to_json() for key, of in rows.numbers.items()}
        write_json(meta / "stats.json", statistics, indent=4)
        write_json(meta / "info.json", _info(rows), indent=4)

    def _check_alike(self, episode: Episode, views: dict[str, tuple[int, int]], acts: bool) -> None:
        rows = self._rows
        if not rows.episodes:
            rows.views, rows.hz, rows.acts = views, episode.hz, acts
        found, first = (episode.hz, views, acts), (rows.hz, rows.views, rows.acts)
        if found != first:
            raise InvalidValue(
                f"episode {episode.key!r} has rate, views and actions {found}, the first one {first}; a "
                "LeRobot data set has one of each: export them into several"
            )

    def _write_files(
        self,
        number: int,
        key: str,
        place: Mapping[str, int],
        videos: Mapping[str, VideoWriter],
        matrices: Mapping[str, list[tuple[np.ndarray, np.ndarray]]],
    ) -> None:
        """Videos and the side file with the cameras."""
        cameras = {}
        for name, video in videos.items():
            path = self.folder / VIDEO.format(video_key=f"observation.images.{name}", **place)
            with atomic_file(path) as stream:
                stream.write(video.finish())
            cameras[name] = _calibration(matrices[name], video.size, f"episode {key!r}, view {name!r}")
        write_json(self.folder / "meta" / "cameras" / f"episode_{number:06d}.json", cameras, indent=None)

    def _table(self, episode: Episode, number: int, length: int, actions: list[np.ndarray]) -> Any:
        import pyarrow

        begin, task = self._rows.frames, episode.instructions[0]
        index = self._rows.tasks.setdefault(task, len(self._rows.tasks))
        columns: dict[str, np.ndarray] = {}
        if actions:
            state = continuous_actions(np.stack(actions)).astype(np.float32)
            columns |= {"observation.state": state, "action": np.concatenate([state[1:], state[-1:]])}
            columns["action.confidence"] = _confidence(episode, length)
        columns["timestamp"] = np.arange(length, dtype=np.float32) / np.float32(episode.hz)
        columns |= {"frame_index": np.arange(length), "index": np.arange(begin, begin + length)}
        columns |= {"episode_index": np.full(length, number), "task_index": np.full(length, index)}
        for key, values in columns.items():
            self._rows.numbers.setdefault(key, Numbers()).add(values.reshape(length, -1))
        vector = pyarrow.list_(pyarrow.float32(), len(NAMES))
        return pyarrow.table(
            {
                key: pyarrow.array(values) if values.ndim == 1 else pyarrow.array(values.tolist(), vector)
                for key, values in columns.items()
            }
        )


def _action(frame: Frame) -> list[np.ndarray]:
    return [] if frame.action is None else [frame.action]


def _confidence(episode: Episode, length: int) -> Float[np.ndarray, "t"]:
    """Confidence per frame: of labels, else of the provenance (one number or one per frame), else 1."""
    given = episode.provenance.get("confidence", 1.0) if episode.labels is None else episode.labels.confidence
    what = f"episode {episode.key!r}: confidence must lie in [0, 1], one number or {length}"
    try:
        values = np.broadcast_to(np.asarray(given, np.float32), (length,))
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{what}, got {given!r:.100}") from error
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidValue(f"{what}, got {given!r:.100}")
    return values


def _calibration(
    matrices: list[tuple[np.ndarray, np.ndarray]], size: tuple[int, int], at: str
) -> dict[str, Any]:
    """An entry of the side file; one matrix where nothing moves."""
    stacks = [np.stack([np.asarray(pair[i], np.float64) for pair in matrices]) for i in (0, 1)]
    if not all(np.isfinite(stack).all() for stack in stacks):
        raise InvalidValue(
            f"{at}: the calibration is lost (NaN), which JSON cannot hold; export the other views (--views) "
            "or the other episodes (--episodes)"
        )
    k, pose = (stack[0] if (stack == stack[0]).all() else stack for stack in stacks)
    return {"K": k.tolist(), "size": list(size), "camera_to_world": pose.tolist()}


def _episode_row(
    episode: Episode, number: int, length: int, begin: int, place: Mapping[str, int], views: list[str]
) -> dict[str, Any]:
    row = {
        "episode_index": number,
        "tasks": [episode.instructions[0]],
        "length": length,
        "dataset_from_index": begin,
        "dataset_to_index": begin + length,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **{f"data/{key}": value for key, value in place.items()},
    }
    for name in views:
        times = {"from_timestamp": 0.0, "to_timestamp": length / episode.hz}
        row |= {f"videos/observation.images.{name}/{k}": v for k, v in {**place, **times}.items()}
    return row


def _info(rows: _Rows) -> dict[str, Any]:
    fps = int(rows.hz) if rows.hz == int(rows.hz) else rows.hz
    single = {"shape": [1], "names": None}
    features: dict[str, Any] = {
        f"observation.images.{name}": {
            "dtype": "video",
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.fps": fps,
                "video.codec": "h264",
                "video.is_depth_map": False,
                "has_audio": False,
            },
        }
        for name, size in rows.views.items()
    }
    if rows.acts:
        vector = {"dtype": "float32", "shape": [len(NAMES)], "names": list(NAMES)}
        features |= {"observation.state": vector, "action": vector}
        features["action.confidence"] = {"dtype": "float32", **single}
    features["timestamp"] = {"dtype": "float32", **single}
    numbers = ("frame_index", "episode_index", "index", "task_index")
    features |= {key: {"dtype": "int64", **single} for key in numbers}
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(rows.episodes),
        "total_frames": rows.frames,
        "total_tasks": len(rows.tasks),
        "chunks_size": CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": fps,
        "splits": {"train": f"0:{len(rows.episodes)}"},
        "data_path": DATA,
        "video_path": VIDEO,
        "features": features,
    }


def _tasks(tasks: Mapping[str, int]) -> Any:
    """Numbers by phrasing; LeRobot looks phrasings up in the index, which pandas keeps as metadata."""
    import pyarrow

    def described(name: str, kind: str, stored: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}

    numbers = pyarrow.array(tasks.values(), pyarrow.int64())
    table = pyarrow.table({"task_index": numbers, "task": list(tasks)})
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [described("task_index", "int64", "int64"), described("task", "unicode", "object")],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _table_of(rows: list[dict[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(rows)


def _write_table(table: Any, path: Path) -> None:
    with atomic_file(path) as stream:
        parquet().write_table(table, stream)
