"""Reads `meta` of a LeRobot data set: rate, videos, tasks, and the files of each episode."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.files.json_yaml import parse_json, read_json, read_text
from datamodules.reading.view_names import Views, chosen_views
from datamodules.sources.lerobot_tables import column_names, read_columns

VERSIONS = ("v2.0", "v2.1", "v3.0")
_AGAIN = "copy the data set again"


@dataclass(frozen=True)
class Info:
    """`meta/info.json`, checked.

    Attributes:
        path: the file.
        version: one of `VERSIONS`.
        hz: frames per second.
        robot: its name, if given.
        features: description of each column and each video by name.
        data: pattern of the tables' paths.
        video: pattern of the videos' paths; None where there are none.
        chunk: episodes per folder in version 2.
        episodes: how many there are; None where that is not said.
    """

    path: AnyPath
    version: str
    hz: float
    robot: Any
    features: Mapping[str, Mapping[str, Any]]
    data: str
    video: str | None
    chunk: int
    episodes: int | None

    @classmethod
    def read(cls, path: AnyPath) -> "Info":
        """Read the file.

        Raises:
            ValueError: another version, or entries that are missing or of another type.
        """
        content = read_json(path)
        version = content.get("codebase_version")
        if version not in VERSIONS:
            raise InvalidValue(
                f"{path}: codebase_version is {version!r}, known are {', '.join(VERSIONS)}; convert the data "
                "set with LeRobot's own script of that version first"
            )
        if missing := {"fps", "features", "data_path", "video_path"} - set(content):
            raise InvalidValue(f"{path} lacks {sorted(missing)}; {_AGAIN}")
        hz, features = content["fps"], content["features"]
        if isinstance(hz, bool) or not isinstance(hz, int | float) or not 0 < hz < math.inf:
            raise InvalidValue(f"{path}: fps must be a number above 0, got {hz!r}; {_AGAIN}")
        if not isinstance(features, dict) or not all(isinstance(part, dict) for part in features.values()):
            raise InvalidValue(f"{path}: features must be an object of objects, got {features!r}; {_AGAIN}")
        for key, kinds in (("data_path", (str,)), ("video_path", (str, type(None)))):
            if not isinstance(content[key], kinds):
                raise InvalidValue(f"{path}: {key} must be text, got {content[key]!r}; {_AGAIN}")
        chunk = _whole(content.get("chunks_size", 1000), f"{path}, chunks_size", 1)
        count = content.get("total_episodes")
        episodes = None if count is None else _whole(count, f"{path}, total_episodes", 1)
        robot, data, video = content.get("robot_type"), content["data_path"], content["video_path"]
        return cls(path, version, float(hz), robot, features, data, video, chunk, episodes)

    def place(self, pattern: str, **words: Any) -> AnyPath:
        """A path of the data set.

        Raises:
            ValueError: the pattern asks for other words.
        """
        try:
            return self.path.parent.parent / pattern.format(**words)
        except (LookupError, ValueError, AttributeError) as error:
            raise InvalidValue(
                f"{self.path}: path {pattern!r} cannot be filled with {sorted(words)} ({error!r}); {_AGAIN}"
            ) from error

    def videos(self, views: Views) -> dict[str, str]:
        """Our name of every video that is read, by its key.

        Raises:
            ValueError: views that are missing or cannot be read, or pictures that would silently be left out.
        """
        pictures = [key for key, feature in self.features.items() if feature.get("dtype") == "image"]
        videos = [key for key, feature in self.features.items() if feature.get("dtype") == "video"]
        depths = [key for key in videos if _is_depth(self.features[key])]
        colours = [key for key in videos if key not in depths]
        asked = pictures + depths if views is None else [key for key in pictures + depths if key in views]
        if asked:
            raise InvalidValue(
                f"{self.path}: {asked} cannot be read: pictures inside parquet files ({pictures}) must be "
                f"encoded as videos with LeRobot first, depth maps ({depths}) are no colours. Name the "
                f"videos to read, of {colours}, by views"
            )
        names = {key: name for key, name in short_names(videos).items() if key in colours}
        chosen = chosen_views(with_keys(views, names), names, self.path)
        if self.video is None:
            raise InvalidValue(f"{self.path}: video_path is null, but {list(chosen)} are videos; {_AGAIN}")
        return chosen

    def names_of(self, key: str) -> list[str]:
        """What a video may be called in the side file: its key first, its default name last."""
        videos = [name for name, feature in self.features.items() if feature.get("dtype") == "video"]
        return [key, short_names(videos)[key]]


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """As LeRobot's own `is_depth_map` decides."""
    info, older = feature.get("info"), feature.get("video_info")
    said = [info.get("is_depth_map"), info.get("video.is_depth_map")] if isinstance(info, dict) else []
    return any([*said, isinstance(older, dict) and older.get("video.is_depth_map")])


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Default names of videos: the last part of the key, or as many parts as make the names unique.

    observation.images.top is `top`; observation.images.front.rgb and observation.images.side.rgb in one data
    set are `front_rgb` and `side_rgb`.
    """
    parts = {key: key.split(".") for key in keys}
    count = dict.fromkeys(keys, 1)
    while True:
        names = {key: "_".join(parts[key][-count[key] :]) for key in keys}
        taken = list(names.values())
        equal = [key for key in keys if taken.count(names[key]) > 1 and count[key] < len(parts[key])]
        if not equal:
            return names
        count |= {key: count[key] + 1 for key in equal}


def with_keys(views: Views, names: Mapping[str, str]) -> Views:
    """`views` with default names replaced by the data set's keys."""
    keys = {name: key for key, name in names.items()}

    def key_of(name: str) -> str:
        return name if name in names else keys.get(name, name)

    if views is None:
        return None
    if not isinstance(views, Mapping):
        return [key_of(name) for name in views]
    found = {key_of(name): ours for name, ours in views.items()}
    if len(found) < len(views):
        raise InvalidValue(f"views: {views} names one video twice; name each once, of {list(names)}")
    return found


@dataclass(frozen=True)
class Entry:
    """The files of an episode.

    Attributes:
        number: its `episode_index`.
        length: number of frames.
        tasks: the instructions that its frames name between them.
        data: parquet file with its rows.
        videos: file and first second by key.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    data: AnyPath
    videos: Mapping[str, tuple[AnyPath, float]]


def read_episodes(info: Info, keys: Sequence[str]) -> list[Entry]:
    """The episodes in order of their numbers.

    Args:
        info: of the data set.
        keys: the videos that are read.

    Raises:
        ValueError: the list is missing or damaged; the message names the file and the episode.
    """
    meta = info.path.parent
    read = _entries_3 if info.version == "v3.0" else _entries_2
    entries = sorted(read(info, meta, keys), key=lambda entry: entry.number)
    if not entries:
        name = "episodes" if info.version == "v3.0" else "episodes.jsonl"
        raise InvalidValue(f"{meta / name} holds no episodes; {_AGAIN}")
    if info.episodes not in (None, len(entries)):
        raise InvalidValue(f"{info.path} says {info.episodes} episodes, there are {len(entries)}; {_AGAIN}")
    for entry, following in pairwise(entries):
        if entry.number == following.number:
            raise InvalidValue(f"{meta}: the list of episodes holds episode {entry.number} twice; {_AGAIN}")
    return entries


def _entries_2(info: Info, meta: AnyPath, keys: Sequence[str]) -> Iterator[Entry]:
    for at, line in _json_lines(meta / "episodes.jsonl"):
        number, length, tasks = _head(line, at)
        where = {"episode_index": number, "episode_chunk": number // info.chunk}
        videos = {key: (info.place(info.video or "", video_key=key, **where), 0.0) for key in keys}
        yield Entry(number, length, tasks, info.place(info.data, **where), videos)


def _entries_3(info: Info, meta: AnyPath, keys: Sequence[str]) -> Iterator[Entry]:
    names = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    places = ("chunk_index", "file_index", "from_timestamp")
    names += [f"videos/{key}/{what}" for key in keys for what in places]
    files: list[AnyPath] = sorted((meta / "episodes").glob("*/[!.]*.parquet"), key=str)
    for file in files:
        for row_number, row in enumerate(read_columns(file, names).to_pylist()):
            yield _entry_3(info, keys, row, f"{file}, row {row_number}")


def _entry_3(info: Info, keys: Sequence[str], row: Mapping[str, Any], at: str) -> Entry:
    def place(of: str) -> dict[str, int]:
        names = ("chunk_index", "file_index")
        return {name: _whole(row[f"{of}/{name}"], f"{at}, {of}/{name}") for name in names}

    videos = {}
    for key in keys:
        begin = row[f"videos/{key}/from_timestamp"]
        if not isinstance(begin, int | float) or not 0 <= begin < math.inf:
            raise InvalidValue(f"{at}: from_timestamp of {key!r} is {begin!r}, expected seconds; {_AGAIN}")
        path = info.place(info.video or "", video_key=key, **place(f"videos/{key}"))
        videos[key] = (path, float(begin))
    number, length, tasks = _head(row, at)
    return Entry(number, length, tasks, info.place(info.data, **place("data")), videos)


def _head(row: Mapping[str, Any], at: str) -> tuple[int, int, tuple[str, ...]]:
    """Number, length and tasks of an episode."""
    if missing := {"episode_index", "length", "tasks"} - set(row):
        raise InvalidValue(f"{at} lacks {sorted(missing)}; {_AGAIN}")
    tasks = row["tasks"]
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise InvalidValue(f"{at}: tasks is {tasks!r}, expected a list of texts; {_AGAIN}")
    number = _whole(row["episode_index"], f"{at}, episode_index")
    return number, _whole(row["length"], f"{at}, length", 1), tuple(tasks)


def _whole(value: Any, at: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidValue(f"{at} is {value!r}, expected a whole number of at least {least}; {_AGAIN}")
    return value


def _json_lines(path: AnyPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each line, and its object."""
    for number, line in enumerate(read_text(path).split("\n")):  # splitlines also splits at U+2028
        if not line.strip():
            continue
        at = f"{path}, line {number + 1}"
        content = parse_json(line, at)
        if not isinstance(content, dict):
            raise InvalidValue(f"{at} holds a {type(content).__name__}, expected a JSON object; {_AGAIN}")
        yield at, content


def tasks_file(info: Info) -> AnyPath:
    """The table of tasks."""
    return info.path.parent / ("tasks.parquet" if info.version == "v3.0" else "tasks.jsonl")


def read_tasks(info: Info) -> dict[int, str]:
    """The instruction of each `task_index`.

    Raises:
        ValueError: the table is missing or damaged.
    """
    path = tasks_file(info)
    rows = _tasks_3(path) if info.version == "v3.0" else _json_lines(path)
    found: dict[int, str] = {}
    for at, row in rows:
        number, task = _whole(row.get("task_index"), f"{at}, task_index"), row.get("task")
        if not isinstance(task, str) or number in found:
            raise InvalidValue(
                f"{at}: task {number} is {task!r}, expected a text, and one for each number; {_AGAIN}"
            )
        found[number] = task
    return found


def _tasks_3(path: AnyPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table of tasks: the index of a pandas frame, which older writers left without a name."""
    there = column_names(path)
    name = "task" if "task" in there else "__index_level_0__"
    for number, row in enumerate(read_columns(path, ["task_index", name]).to_pylist()):
        yield f"{path}, row {number}", {"task_index": row["task_index"], "task": row[name]}
