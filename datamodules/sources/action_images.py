"""Reads the layout of the data set released with Action Images (RLBench).

The layout::

    <path>/<task>/variation0/variation_descriptions.pkl                  phrasings
    <path>/<task>/variation0/episodes/episode0/actions.npy               [t, 8] at 20 Hz: pose and openness
                                              /key_frames.npy            numbers of steps
                                              /view0/rgb/video.mp4       every 4th step
                                              /view0/camera_params.json  {"0000": {intrinsics, extrinsics}}
                                              /camera_names.json         ours: {"view0": "front", ...}

Extrinsics are RLBench's: camera to world, x left, y up, negative focal lengths. Others write the same folders
with a picture at every step and plain numbers as keys; the lengths decide which it is. The actions between
pictures, key frames and the folders' names, for which shards have no member, are kept in the provenance.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.camera_checks import check_intrinsics
from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, Frame, SourceCard, View
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.json_yaml import read_json
from ai_wam.files.numpy_arrays import read_npy
from datamodules.reading.pictures_and_text import check_finite, check_stride, numbered
from datamodules.reading.video_files import VideoFile
from datamodules.reading.view_names import Views, chosen_views
from datamodules.sources.rlbench import opencv_cameras, read_phrasings

EVERY, HZ = 4, 20.0  # steps per picture and steps per second of the release
DESCRIPTIONS, CAMERAS, VIDEO = "variation_descriptions.pkl", "camera_params.json", "rgb/video.mp4"
ACTIONS, KEY_FRAMES, NAMES = "actions.npy", "key_frames.npy", "camera_names.json"
RELEASED = "released"  # key of the provenance for what an export to this layout needs


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
        actions, views = _read_actions(folder / ACTIONS), self._views(folder)
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
            read_phrasings(variation / DESCRIPTIONS),
            self.hz / every / self.stride,
            provenance,
        )

    def _views(self, folder: AnyPath) -> dict[str, AnyPath]:
        """Folder of each camera by our name, in the order of the folders' numbers."""
        there = [view.name for view in sorted(folder.glob("view*"), key=numbered)]
        named = read_json(folder / NAMES) if (folder / NAMES).exists() else {}
        if strange := {key: name for key, name in named.items() if key not in there or name != str(name)}:
            raise InvalidValue(f"{folder / NAMES}: {strange} names no folder of {there}; correct it")
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
        video = VideoFile.open(folder / VIDEO)
        every = every or _rate(video, steps)
        if every * (video.frames - 1) >= steps:
            raise InvalidValue(
                f"{video.path} has {video.frames} pictures, one for every {every} actions, but actions.npy "
                f"has only {steps}; copy the episode again or correct `every`"
            )
        cameras = _read_cameras(folder / CAMERAS, video.frames, steps, every)
        check_intrinsics(cameras.intrinsics.numpy(), video.size, str(folder / CAMERAS))
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
        actions = read_npy(path.read_bytes(), ACTIONS)
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
    """JSON values by which `ai-wam export` writes the same files again; arrays are .npy in base64."""
    kept: dict[str, Any] = {"views": {name: view.name for name, view in views.items()}}
    if every > 1:
        kept[ACTIONS] = base64.b64encode((folder / ACTIONS).read_bytes()).decode()
    if (folder / KEY_FRAMES).exists():
        data = (folder / KEY_FRAMES).read_bytes()
        read_npy(data, str(folder / KEY_FRAMES))
        kept[KEY_FRAMES] = base64.b64encode(data).decode()
    return kept
