"""The layout of the data set released with Action Images (RLBench), read and written.

    <path>/<task>/variation0/variation_descriptions.pkl                  phrasings
    <path>/<task>/variation0/episodes/episode0/actions.npy               [t, 8] at 20 Hz: pose and openness
                                              /key_frames.npy            numbers of steps
                                              /view0/rgb/video.mp4       every 4th step
                                              /view0/camera_params.json  {"0000": {intrinsics, extrinsics}}
                                              /camera_names.json         ours: {"view0": "front", ...}

Extrinsics are RLBench's: camera to world, x left, y up, negative focal lengths. Others write the same folders
with a picture at every step and plain numbers as keys; both are told apart by their lengths. What shards have
no place for, the actions between pictures, key frames and the folders' names, stays in the provenance.
"""

import base64
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, Frame, SourceCard, View
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path, file_name, whole_file, write_json
from ai_wam.files.json_yaml import read_json
from ai_wam.files.numpy_arrays import read_npy
from ai_wam.video import VideoEncoding, VideoWriter
from datamodules.calibration import check_intrinsics
from datamodules.episode_members import npy
from datamodules.reading import check_finite, check_stride, numbered
from datamodules.rlbench_demos import opencv_cameras, read_phrasings
from datamodules.rotations import continuous_actions
from datamodules.video_files import VideoFile
from datamodules.view_names import Views, chosen_views

EVERY, HZ = 4, 20.0  # steps per picture and steps per second of the release
_DESCRIPTIONS, _CAMERAS, _VIDEO = "variation_descriptions.pkl", "camera_params.json", "rgb/video.mp4"
_ACTIONS, _KEY_FRAMES, _NAMES = "actions.npy", "key_frames.npy", "camera_names.json"
RELEASED = "released"  # in the provenance: what the other way needs
_SAME_ACTION = 2e-3  # shards round to float32 and correct quaternions by up to 1e-3


class ActionImagesLayout:
    """Every episode below a folder in the layout above: by task, variation, number."""

    card = SourceCard(
        title="Recordings in the layout of the Action Images release",
        citation="Action Images, arXiv 2604.06168",
        defects=("Pictures are there at every fourth step of the actions, 5 Hz, in lossy videos.",),
    )

    def __init__(
        self,
        path: str,
        views: Views = None,
        every: int | None = None,
        stride: int = 1,
        hz: float = HZ,
    ) -> None:
        """List the episodes; none is read yet.

        Args:
            path: the folder that holds one folder per task.
            views: folders of cameras such as view0, or names for them, such as {view0: front}; others are
                left out. All, under the names in camera_names.json or else their folders', if left out.
            every: actions per picture; found from the lengths if left out.
            stride: take every n-th picture.
            hz: actions per second.

        Raises:
            ValueError: no episodes, or a stride or rate that is not above 0.
        """
        check_stride(stride, hz)
        self.path, self.views, self.every, self.stride, self.hz = path, views, every, stride, hz
        self._folders: list[AnyPath] = sorted(
            as_path(path).glob("*/variation*/episodes/episode*"),
            key=lambda folder: [numbered(part) for part in (folder.parents[2], folder.parents[1], folder)],
        )
        if not self._folders:
            raise InvalidValue(
                f"{path} holds no episodes; expected <task>/variation<N>/episodes/episode<M>/actions.npy"
            )

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Episode:
        folder = self._folders[index]
        variation, task = folder.parents[1], folder.parents[2].name
        actions, views = _read_actions(folder / _ACTIONS), self._views(folder)
        tracks = {name: _Track.read(view, len(actions), self.every) for name, view in views.items()}
        every = _one_rate(folder, tracks)
        provenance = {
            "source": "action_images_layout",
            "task": task,
            "variation": int(variation.name.removeprefix("variation")),
            "episode": folder.name,
        }
        if self.stride == 1:
            provenance[RELEASED] = _released(folder, every, views)
        return Episode(
            f"{task}-{variation.name}-{folder.name}",
            _frames(tracks, actions[::every], self.stride, self.hz / every / self.stride),
            read_phrasings(variation / _DESCRIPTIONS),
            self.hz / every / self.stride,
            provenance,
        )

    def _views(self, folder: AnyPath) -> dict[str, AnyPath]:
        """Folder of each camera by our name, in the order of the folders' numbers."""
        there = [view.name for view in sorted(folder.glob("view*"), key=numbered)]
        named = read_json(folder / _NAMES) if (folder / _NAMES).exists() else {}
        if strange := {key: name for key, name in named.items() if key not in there or name != str(name)}:
            raise InvalidValue(f"{folder / _NAMES}: {strange} names no folder of {there}; correct it")
        chosen = chosen_views(self.views, {name: named.get(name, name) for name in there}, folder)
        return {ours: folder / name for name, ours in chosen.items()}


@dataclass(frozen=True)
class _Track:
    """One camera: its video and where it was at each picture."""

    video: VideoFile
    cameras: Cameras
    every: int

    @classmethod
    def read(cls, folder: AnyPath, steps: int, every: int | None) -> "_Track":
        video = VideoFile.open(folder / _VIDEO)
        every = every or _rate(video, steps)
        if every * (video.frames - 1) >= steps:
            raise InvalidValue(
                f"{video.path} has {video.frames} pictures, one for every {every} actions, but actions.npy "
                f"has only {steps}; copy the episode again or correct `every`"
            )
        cameras = _read_cameras(folder / _CAMERAS, video.frames, steps, every)
        check_intrinsics(cameras.intrinsics.numpy(), video.size, str(folder / _CAMERAS))
        return cls(video, cameras, every)


def _rate(video: VideoFile, steps: int) -> int:
    """Actions per picture, from the lengths."""
    for every in (EVERY, 1):
        if video.frames == len(range(0, steps, every)):
            return every
    raise InvalidValue(
        f"{video.path} has {video.frames} pictures for the {steps} actions of actions.npy, neither one for "
        f"each nor one for every {EVERY}; copy the episode again, or say how they belong (every: ...)"
    )


def _one_rate(folder: AnyPath, tracks: Mapping[str, _Track]) -> int:
    lengths = {name: track.video.frames for name, track in tracks.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidValue(f"{folder}: the videos have {lengths} pictures; copy the episode again")
    return next(iter(tracks.values())).every


def _read_actions(path: AnyPath) -> Float[np.ndarray, "t 8"]:
    try:
        actions = read_npy(path.read_bytes(), _ACTIONS)
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{path} cannot be read ({error}); copy the episode again") from error
    if actions.ndim != 2 or actions.shape[1] != 8 or not len(actions):
        raise InvalidValue(
            f"{path} has shape {actions.shape}, expected [t, 8]: x y z, quaternion x y z w, open"
        )
    check_finite(actions, str(path))
    return np.asarray(actions, dtype=np.float64)


def _read_cameras(path: AnyPath, pictures: int, steps: int, every: int) -> Cameras:
    """The camera at each picture; keys are numbers of pictures or of steps, padded with zeros or not."""
    entries = read_json(path)
    by_number = {int(key): value for key, value in entries.items() if key.isdecimal()}
    of_pictures, of_steps = list(range(pictures)), list(range(0, every * pictures, every))
    # A list of all steps also has an entry for every picture's number: steps are looked for first.
    wanted = of_steps if len(by_number) == steps or set(of_steps) == set(by_number) else of_pictures
    wanted = [min(by_number)] * pictures if len(by_number) == 1 else wanted
    if missing := [number for number in wanted if number not in by_number]:
        raise InvalidValue(
            f"{path} has {len(by_number)} cameras and none for {missing[:5]}; expected one, or one for each "
            f"of the {pictures} pictures or {steps} steps; copy the episode again"
        )
    stacks = []
    for key, size in (("intrinsics", 3), ("extrinsics", 4)):
        try:
            stack = np.array([by_number[number][key] for number in wanted], dtype=np.float64)
            stacks.append(stack.reshape(pictures, size, size))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidValue(
                f"{path}: {key!r} must be a {size}x{size} matrix in every entry ({error!r}); copy it again"
            ) from error
        check_finite(stacks[-1], f"{path}, {key!r}")
    return opencv_cameras(stacks[0], stacks[1], str(path))


def _frames(
    tracks: Mapping[str, _Track], actions: Float[np.ndarray, "t 8"], stride: int, hz: float
) -> Iterator[Frame]:
    videos = [track.video.images(stride=stride) for track in tracks.values()]
    for number, images in enumerate(zip(*videos, strict=True)):
        at = number * stride
        views = {
            name: View(image, cameras.intrinsics[at].numpy(), cameras.world_from_camera[at].numpy())
            for (name, cameras), image in zip(
                ((name, track.cameras) for name, track in tracks.items()), images, strict=True
            )
        }
        yield Frame(views, actions[at], number / hz)


def _released(folder: AnyPath, every: int, views: Mapping[str, AnyPath]) -> dict[str, Any]:
    """JSON values from which `ActionImagesWriter` writes the same files again; arrays as .npy in base64."""
    kept: dict[str, Any] = {"views": {name: view.name for name, view in views.items()}}
    if every > 1:
        kept[_ACTIONS] = base64.b64encode((folder / _ACTIONS).read_bytes()).decode()
    if (folder / _KEY_FRAMES).exists():
        data = (folder / _KEY_FRAMES).read_bytes()
        read_npy(data, str(folder / _KEY_FRAMES))
        kept[_KEY_FRAMES] = base64.b64encode(data).decode()
    return kept


def _kept_array(episode: Episode, name: str) -> np.ndarray | None:
    text, at = _kept(episode).get(name), f"episode {episode.key!r}: {name} of its provenance"
    if text is None:
        return None
    try:
        return read_npy(base64.b64decode(text), at)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{at} cannot be read ({error}); convert the release again") from error


def _kept(episode: Episode) -> Mapping[str, Any]:
    """What was kept of a release; nothing where the episode comes from elsewhere."""
    kept = episode.provenance.get(RELEASED, {})
    if not isinstance(kept, Mapping) or not isinstance(kept.get("views", {}), Mapping):
        raise InvalidValue(
            f"episode {episode.key!r}: {RELEASED!r} in its provenance is {kept!r:.100}, expected an object "
            "that names the views; convert the release again"
        )
    return kept


class ActionImagesWriter:
    """Writes episodes of 20 Hz into the layout, a picture at every 4th step; released ones as they were.

    Cameras become view0, view1 ... in the episode's order; camera_names.json says what they are. Variations
    are told apart by their phrasings, since the layout keeps those per variation; a variation keeps its
    number where that is free.
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
        if episode.hz != HZ and _kept_array(episode, _ACTIONS) is None:
            raise InvalidValue(
                f"episode {episode.key!r} has {episode.hz:g} Hz; this layout holds actions at {HZ:g} Hz and "
                f"a picture at every {EVERY}th: record at {HZ:g} Hz (record_hz), or export to another layout"
            )
        variation = self._variation(episode)
        number = self._counts.get(variation, 0)
        self._counts[variation] = number + 1
        _write_episode(variation / "episodes" / f"episode{number}", episode, self.encoding)

    def close(self) -> None:
        """Nothing is left to write."""

    def _variation(self, episode: Episode) -> AnyPath:
        task = file_name(str(episode.provenance.get("task", "task")), f"episode {episode.key!r}: its task")
        used = {number for (name, _), number in self._variations.items() if name == task}
        own: Any = episode.provenance.get("variation")
        good = isinstance(own, int) and not isinstance(own, bool) and own >= 0
        free = own if good and own not in used else max(used, default=-1) + 1
        number = self._variations.setdefault((task, episode.instructions), free)
        folder = self.folder / task / f"variation{number}"
        _write(folder / _DESCRIPTIONS, pickle.dumps(list(episode.instructions), protocol=4))
        return folder


def _write_episode(folder: AnyPath, episode: Episode, encoding: VideoEncoding) -> None:
    actions: list[np.ndarray] = []
    every = 1 if _kept_array(episode, _ACTIONS) is not None else EVERY  # a picture at so many frames
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
        _write(place / _VIDEO, video.finish())
        write_json(place / _CAMERAS, cameras[name], indent=None)
    write_json(folder / _NAMES, {folders[name]: name for name in videos}, indent=None)
    steps, key_frames = _all_steps(episode, np.stack(actions)), _kept_array(episode, _KEY_FRAMES)
    _write(folder / _ACTIONS, npy(steps))
    key_frames = _key_frames(steps[:, 7].tolist()) if key_frames is None else key_frames
    _write(folder / _KEY_FRAMES, npy(key_frames))


def _write(path: AnyPath, content: bytes) -> None:
    with whole_file(path) as stream:
        stream.write(content)


def _all_steps(episode: Episode, actions: Float[np.ndarray, "t 8"]) -> Float[np.ndarray, "n 8"]:
    """The actions at 20 Hz: the episode's own, or those that were kept with it."""
    steps = _kept_array(episode, _ACTIONS)
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
            f"{at}: the calibration is lost (NaN), which this layout cannot say; export the other views "
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
