"""Writes episodes in the layout of the Action Images release, which `sources.action_images` reads."""

import base64
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, View
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, atomic_file, file_name, write_json
from ai_wam.files.numpy_arrays import read_npy
from ai_wam.video import VideoEncoding, VideoWriter
from datamodules.reading.rotations import continuous_actions
from datamodules.shards.episode_encoding import npy
from datamodules.sources.action_images import (
    ACTIONS,
    CAMERAS,
    DESCRIPTIONS,
    EVERY,
    HZ,
    KEY_FRAMES,
    NAMES,
    RELEASED,
    VIDEO,
)

_SAME_ACTION = 2e-3  # shards round to float32 and correct quaternions by up to 1e-3


def _kept_array(episode: Episode, name: str) -> np.ndarray | None:
    text, at = _kept(episode).get(name), f"episode {episode.key!r}: {name} of its provenance"
    if text is None:
        return None
    try:
        return read_npy(base64.b64decode(text), at)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{at} cannot be read ({error}); convert the release again") from error


def _kept(episode: Episode) -> Mapping[str, Any]:
    """The entries kept from a release; empty where the episode comes from elsewhere."""
    kept = episode.provenance.get(RELEASED, {})
    if not isinstance(kept, Mapping) or not isinstance(kept.get("views", {}), Mapping):
        raise InvalidValue(
            f"episode {episode.key!r}: {RELEASED!r} in its provenance is {kept!r:.100}, expected an object "
            "that names the views; convert the release again"
        )
    return kept


class ActionImagesWriter:
    """Writes episodes of 20 Hz into the layout, a picture at every 4th step; released ones as they were.

    Cameras become view0, view1 ... in the episode's order; camera_names.json has their names. Episodes of one
    task with different phrasings get different variations, since the layout has phrasings per variation; a
    variation keeps its number where that is free.
    """

    def __init__(self, folder: AnyPath, encoding: VideoEncoding) -> None:
        self.folder, self.encoding = folder, encoding
        self._variations: dict[tuple[str, tuple[str, ...]], int] = {}
        self._counts: dict[AnyPath, int] = {}

    def write(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            ValueError: another rate than 20 Hz, no actions, or a camera that the layout cannot hold.
        """
        if episode.hz != HZ and _kept_array(episode, ACTIONS) is None:
            raise InvalidValue(
                f"episode {episode.key!r} has {episode.hz:g} Hz; this layout holds actions at {HZ:g} Hz and "
                f"a picture at every {EVERY}th: record at {HZ:g} Hz (record_hz), or export to another layout"
            )
        variation = self._variation(episode)
        number = self._counts.get(variation, 0)
        self._counts[variation] = number + 1
        _write_episode(variation / "episodes" / f"episode{number}", episode, self.encoding)

    def close(self) -> None:
        """Does nothing: every episode is already written."""

    def _variation(self, episode: Episode) -> AnyPath:
        task = file_name(str(episode.provenance.get("task", "task")), f"episode {episode.key!r}: its task")
        used = {number for (name, _), number in self._variations.items() if name == task}
        own: Any = episode.provenance.get("variation")
        good = isinstance(own, int) and not isinstance(own, bool) and own >= 0
        free = own if good and own not in used else max(used, default=-1) + 1
        number = self._variations.setdefault((task, episode.instructions), free)
        folder = self.folder / task / f"variation{number}"
        _write(folder / DESCRIPTIONS, pickle.dumps(list(episode.instructions), protocol=4))
        return folder


def _write_episode(folder: AnyPath, episode: Episode, encoding: VideoEncoding) -> None:
    actions: list[np.ndarray] = []
    every = 1 if _kept_array(episode, ACTIONS) is not None else EVERY  # a picture at so many frames
    videos: dict[str, VideoWriter] = {}
    cameras: dict[str, dict[str, Any]] = {}
    for number, frame in enumerate(episode.frames):
        if frame.action is None:
            raise InvalidValue(
                f"episode {episode.key!r}, frame {number} has no action; this layout needs them: export the "
                "other episodes (--episodes)"
            )
        actions.append(frame.action)
        if number % every:
            continue
        for name, view in frame.views.items():
            at = f"episode {episode.key!r}, frame {number}, view {name!r}"
            if name not in videos:
                videos[name] = VideoWriter(view.image.shape[:2], HZ / EVERY, encoding)
            videos[name].add(view.image)
            cameras.setdefault(name, {})[f"{number // every:04d}"] = _rlbench_entry(view, at)
    folders = _view_folders(episode, list(videos))
    for name, video in videos.items():
        place = folder / folders[name]
        _write(place / VIDEO, video.finish())
        write_json(place / CAMERAS, cameras[name], indent=None)
    write_json(folder / NAMES, {folders[name]: name for name in videos}, indent=None)
    steps, key_frames = _all_steps(episode, np.stack(actions)), _kept_array(episode, KEY_FRAMES)
    _write(folder / ACTIONS, npy(steps))
    key_frames = _key_frames(steps[:, 7].tolist()) if key_frames is None else key_frames
    _write(folder / KEY_FRAMES, npy(key_frames))


def _write(path: AnyPath, content: bytes) -> None:
    with atomic_file(path) as stream:
        stream.write(content)


def _all_steps(episode: Episode, actions: Float[np.ndarray, "t 8"]) -> Float[np.ndarray, "n 8"]:
    """The actions at 20 Hz: the episode's own, or those that were kept with it."""
    steps = _kept_array(episode, ACTIONS)
    if steps is None:
        return continuous_actions(actions).astype(np.float32)
    kept = steps[:: round(HZ / episode.hz)]
    same = len(kept) == len(actions) and _distance(kept, actions) < _SAME_ACTION
    if not same:
        raise InvalidValue(
            f"episode {episode.key!r} has {episode.hz:g} Hz and other actions than those kept from its "
            f"release, so the steps at {HZ:g} Hz are unknown; export it to another layout (--to lerobot)"
        )
    return steps


def _distance(a: Float[np.ndarray, "n 8"], b: Float[np.ndarray, "n 8"]) -> float:
    """Largest difference of any number; both signs of a quaternion are one rotation."""
    turned = b * np.array([1, 1, 1, -1, -1, -1, -1, 1])
    return float(np.minimum(np.abs(a - b).max(axis=1), np.abs(a - turned).max(axis=1)).max())


def _view_folders(episode: Episode, names: Sequence[str]) -> dict[str, str]:
    """Folder of each camera: the released one, else view0, view1 ... in order."""
    released = _kept(episode).get("views", {})
    if set(names) <= set(released):
        at = f"episode {episode.key!r}: the folder of view"
        return {name: file_name(str(released[name]), f"{at} {name!r}") for name in names}
    return {name: f"view{index}" for index, name in enumerate(names)}


def _rlbench_entry(view: View, at: str) -> dict[str, list[list[float]]]:
    if not (np.isfinite(view.intrinsics).all() and np.isfinite(view.world_from_camera).all()):
        raise InvalidValue(
            f"{at}: the calibration is lost (NaN), which this layout cannot express; export the other views "
            "(--views) or the other episodes (--episodes)"
        )
    cameras = Cameras(
        torch.from_numpy(np.asarray(view.intrinsics, np.float64)),
        torch.from_numpy(np.asarray(view.world_from_camera, np.float64)),
    )
    k, extrinsics = cameras.to_rlbench()
    return {"intrinsics": k.tolist(), "extrinsics": extrinsics.tolist()}


def _key_frames(openness: Sequence[float]) -> np.ndarray:
    """Steps at which the gripper opens or closes, and the last one."""
    opened = np.array(openness) > 0.5
    changes = np.flatnonzero(opened[1:] != opened[:-1]) + 1
    return np.unique(np.append(changes, len(opened) - 1))
