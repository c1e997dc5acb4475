"""What `ai-wam view` can show: shards, results of `ai-wam test`, predictions of `ai-wam predict`."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidValue, MissingFile
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.numpy_arrays import read_npz
from ai_wam.video import decode_frames, iterate_video
from ai_wam.viewing.scene import PredictedChunk, Scene, ShownFrame
from benchmarks.evaluation.results import read_results
from benchmarks.evaluation.trial_recording import FOLDER
from datamodules.shards.format import INDEX
from datamodules.shards.reader import ShardSet

_KNOWN = (
    "a folder of shards (index.json), of a test (results.json) or of predictions (what `ai-wam predict` "
    "writes below predictions/)"
)
_BATCHES, _SAMPLE, _RESULTS = "rank*-batch*.npz", "actions.npz", "results.json"
# Panels of a trial's video by the names that they get; the viewer lays actions over pictures itself.
_PANELS = {"generated actions": "generated_action_image", "generated video": "generated_picture"}
_CAMERAS = ("views", "intrinsics", "world_from_camera")
_OF_SAMPLE = ("seconds", "actions", "valid", "prompt", "dt", "pictures", *_CAMERAS)
_OF_BATCH = ("keys", "actions", "valid", "dt")
_OF_TRIAL = (
    *("seconds", "poses", "prompt", "control_hz", "panel", "panels", "line", "mp4", *_CAMERAS),
    *("chunk_seconds", "chunk_dt", "chunk_lengths", "actions", "valid", "position_std"),
)


class Scenes(NamedTuple):
    """Scenes by number.

    Attributes:
        names: of all of them.
        read: the scene of a number.
    """

    names: Sequence[str]
    read: Callable[[int], Scene]


def scenes_of(path: str, shards: str | None = None) -> Scenes:
    """The scenes of a folder or file.

    Args:
        path: of shards, of a test or of predictions.
        shards: the recordings that predictions were made on, which are then shown with them.

    Raises:
        ValueError: something else; the message says what is expected.
        OSError: there is nothing.
    """
    place = as_path(path)
    if not place.exists():
        raise MissingFile(f"{path} is not there; name {_KNOWN}")
    if place.is_file():
        place = _folder_of(place)
    if (place / INDEX).exists():
        return _of_shards(ShardSet(place))
    if (place / _RESULTS).exists():
        return _of_results(place)
    samples = _found(place, f"*/{_SAMPLE}") or _found(place, _SAMPLE)
    if samples:
        return Scenes([file.parent.name for file in samples], lambda index: _sample(samples[index]))
    if batches := _found(place, _BATCHES):
        return _of_batches(batches, None if shards is None else ShardSet(shards))
    raise InvalidValue(_unknown(place))


def _arrays(file: AnyPath, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of a file, which must have the ones that are wanted."""
    found = read_npz(file.read_bytes(), str(file), text=True)
    if missing := [name for name in wanted if name not in found]:
        raise InvalidValue(
            f"{file} lacks {missing}: another version of ai-wam wrote it, or another program; run test or "
            "`ai-wam predict` again"
        )
    return found


def _found(place: AnyPath, pattern: str) -> list[AnyPath]:
    """Files of a folder in the order of their names."""
    files: list[AnyPath] = [*place.glob(pattern)]
    return sorted(files, key=str)


def _folder_of(file: AnyPath) -> AnyPath:
    """The folder of a file of which the name says what it is."""
    if file.name not in (INDEX, _RESULTS, _SAMPLE):
        raise InvalidValue(f"{file} is nothing that `ai-wam view` shows; name {_KNOWN}")
    return file.parent


def _unknown(place: AnyPath) -> str:
    """Why a folder cannot be shown."""
    if points := _found(place, f"*/{_RESULTS}"):
        return f"{place} holds {len(points)} tests; name the folder of one, such as {points[0].parent}"
    what = "holds nothing that `ai-wam view` shows" if any(place.iterdir()) else "is empty"
    return f"{place} {what}; name {_KNOWN}"


def _of_shards(shards: ShardSet) -> Scenes:
    return Scenes([entry.key for entry in shards.episodes], lambda index: _episode(shards, index))


def _episode(shards: ShardSet, index: int, chunks: Sequence[PredictedChunk] = ()) -> Scene:
    episode, entry = shards.episode(index), shards.episodes[index]
    frames = (ShownFrame(frame) for frame in episode.frames)
    return Scene(episode.key, episode.instructions[0], episode.hz, frames, entry.frames, tuple(chunks))


def _of_results(folder: AnyPath) -> Scenes:
    """The trials of a test that have a recording, in the test's order."""
    trials = [str(entry["id"]) for entry in read_results(str(folder / _RESULTS))["trials"]]
    files = {name: folder / FOLDER / f"{name}.npz" for name in trials}
    names = [name for name, file in files.items() if file.exists()]
    if not names:
        raise InvalidValue(
            f"{folder} has the results of {len(trials)} trials and recordings of none, which tests of this "
            f"version write into {FOLDER}/ for trials with a video: test again with --data.videos of at "
            "least 1"
        )
    return Scenes(names, lambda index: _trial(files[names[index]], names[index]))


def _trial(file: AnyPath, name: str) -> Scene:
    found = _arrays(file, _OF_TRIAL)
    ends = np.cumsum(found["chunk_lengths"])
    chunks = tuple(
        PredictedChunk(
            float(found["chunk_seconds"][number]),
            float(found["chunk_dt"][number]),
            found["actions"][end - length : end],
            found["valid"][end - length : end],
            _std(found["position_std"][end - length : end]),
        )
        for number, (end, length) in enumerate(zip(ends, found["chunk_lengths"], strict=True))
    )
    count = len(found["seconds"])
    return Scene(name, str(found["prompt"]), float(found["control_hz"]), _trial_frames(found), count, chunks)


def _std(values: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"] | None:
    """Standard deviations; None where the policy gave none."""
    return None if np.isnan(values).all() else values


def _trial_frames(found: Mapping[str, Any]) -> Iterator[ShownFrame]:
    """The frames of a trial, whose pictures are cut out of its video."""
    h, w = (int(side) for side in found["panel"])
    line, panels, views = int(found["line"]), found["panels"].tolist(), found["views"].tolist()
    sheets = iterate_video(found["mp4"].tobytes())
    for index, (seconds, sheet) in enumerate(zip(found["seconds"], sheets, strict=False)):  # the last is held
        cut = {
            view: {
                panel: sheet[row * (h + line) :][:h, column * (w + line) :][:, :w]
                for column, panel in enumerate(panels)
            }
            for row, view in enumerate(views)
        }
        cameras = zip(views, found["intrinsics"][index], found["world_from_camera"][index], strict=True)
        seen = {
            name: View(cut[name]["rollout"], k, pose) for name, k, pose in cameras if not np.isnan(k).all()
        }
        generated = {
            name: {ours: cut[name][panel] for panel, ours in _PANELS.items() if panel in panels}
            for name in seen
        }
        pose = found["poses"][index]
        yield ShownFrame(Frame(seen, pose if np.isfinite(pose).all() else None, float(seconds)), generated)


def _sample(file: AnyPath) -> Scene:
    """A sample of one's own pictures: the present pose, and the actions predicted from there."""
    found = _arrays(file, _OF_SAMPLE)
    std = found.get("position_std")
    dt, actions, valid = float(found["dt"]), found["actions"].astype(np.float64), found["valid"]
    chunk = PredictedChunk(0.0, dt, actions[1:], valid[1:], None if std is None else std[1:].astype(float))
    frames, count = _sample_frames(file.parent, found), len(found["seconds"])
    return Scene(file.parent.name, str(found["prompt"]), 1 / dt, frames, count, (chunk,))


def _sample_frames(folder: AnyPath, found: Mapping[str, Any]) -> Iterator[ShownFrame]:
    """The present picture, held, and what was generated for every step; only the present pose is known."""
    pictures, views = found["pictures"], found["views"].tolist()
    h, w = pictures.shape[1:3]
    videos = {
        "generated_action_image": _panels(folder / "action_images.mp4", (h, w), len(views)),
        "generated_picture": _panels(folder / "observation.mp4", (h, w), len(views)),
    }
    for step, seconds in enumerate(found["seconds"]):
        seen = {
            name: View(pictures[i], found["intrinsics"][i].astype(np.float64), pose.astype(np.float64))
            for i, (name, pose) in enumerate(zip(views, found["world_from_camera"], strict=True))
        }
        generated = {
            name: {what: video[step, i] for what, video in videos.items() if video is not None}
            for i, name in enumerate(views)
        }
        action = found["actions"][0].astype(np.float64) if step == 0 else None
        yield ShownFrame(Frame(seen, action, float(seconds)), generated)


def _panels(file: AnyPath, size: tuple[int, int], views: int) -> UInt8[np.ndarray, "t v h w 3"] | None:
    """The views of a video that has them side by side and enlarged, in their own size, if there is one."""
    if not file.exists():
        return None
    frames = decode_frames(file.read_bytes())
    scale, (h, w) = frames.shape[1] // size[0], size
    middle: UInt8[np.ndarray, "t h vw 3"] = frames[:, scale // 2 :: scale, scale // 2 :: scale]
    return middle.reshape(len(frames), h, views, w, 3).transpose(0, 2, 1, 3, 4)


def _of_batches(files: Sequence[AnyPath], shards: ShardSet | None) -> Scenes:
    """Predictions on clips of shards: a scene per episode, with the recording where its shards are named."""
    chunks: dict[str, list[tuple[int, Mapping[str, Any], int]]] = defaultdict(list)
    for file in files:
        found = _arrays(file, _OF_BATCH)
        for row, key in enumerate(found["keys"].tolist()):
            episode, _, frame = key.rpartition("@")
            if not frame.isdecimal():
                raise InvalidValue(f"{file}: {key!r:.100} names no clip of shards, such as 'episode-1@0'")
            chunks[episode].append((int(frame), found, row))
    names = list(chunks)
    places = {} if shards is None else {entry.key: i for i, entry in enumerate(shards.episodes)}
    if shards is not None and (foreign := [name for name in names if name not in places]):
        raise InvalidValue(f"{shards.folder} has no episode {foreign[0]!r}: predictions were made on others")

    def read(index: int) -> Scene:
        name = names[index]
        clips = sorted(chunks[name], key=lambda clip: clip[0])
        if shards is None:
            return _bare(name, clips)
        hz = shards.episodes[places[name]].hz
        return _episode(shards, places[name], [_row(found, row, at / hz) for at, found, row in clips])

    return Scenes(names, read)


def _bare(name: str, clips: Sequence[tuple[int, Mapping[str, Any], int]]) -> Scene:
    """Predicted paths alone: without the recording nothing says at which time its frames were."""
    at, found, row = clips[0]
    return Scene(name, f"frame {at}", 1 / float(found["dt"]), (), 0, (_row(found, row, 0.0),))


def _row(found: Mapping[str, Any], row: int, seconds: float) -> PredictedChunk:
    std = found.get("position_std")
    return PredictedChunk(
        seconds,
        float(found["dt"]),
        found["actions"][row].astype(np.float64),
        found["valid"][row],
        None if std is None else std[row].astype(np.float64),
    )
