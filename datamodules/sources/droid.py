"""Reads DROID's raw episodes, with the calibrations and phrasings that its authors published later.

    <path>/<lab>/success/<date>/<time>/metadata_<uuid>.json      serials of the cameras, the task
                                      /trajectory.h5             poses, gripper, recorded extrinsics at 15 Hz
                                      /recordings/MP4/<serial>.mp4     left pictures; -stereo.mp4 is not read
    <annotations>/cam2base_extrinsic_superset.json, cam2base_extrinsics.json, intrinsics.json,
                  droid_language_annotations.json                by the episode's uuid

The world is the robot's base. DROID's gripper counts how far it is closed (0 = open), which is turned here.
The recorded pose is the arm's end, not the finger tips: `tool_offset` moves it. Needs the extra `droid`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.camera_checks import check_intrinsics
from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, Frame, SourceCard, View
from ai_wam.errors import InvalidValue, MissingPackage
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.json_yaml import read_json
from datamodules.reading.pictures_and_text import check_finite, check_stride
from datamodules.reading.rotations import pose_from_xyz_euler, to_quaternion
from datamodules.reading.video_files import VideoFile
from datamodules.reading.view_names import Views, chosen_views, unrenamed
from datamodules.sources.droid_calibration import (
    Limits,
    Verdict,
    check_fixed_camera,
    check_hand_camera,
    corrected_pose,
    phrasings,
    published_intrinsics,
)

VIEWS = ("wrist", "ext1", "ext2")
HZ = 15.0
_STATE = "observation/robot_state"
_CLOCK = "observation/timestamp"
_REACH = 0.05  # of the gripper's range, by which its sensor may go beyond


def h5() -> Any:
    """The module that reads HDF5.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingPackage("DROID's trajectory.h5 needs h5py: pip install 'ai-wam[droid]'") from error
    return h5py


class Droid:
    """Every recording below a folder, in the order of their paths."""

    card = SourceCard(
        "DROID",
        "cc-by-4.0",
        "https://droid-dataset.github.io",
        "Khazatsky et al., DROID: A Large-Scale In-The-Wild Robot Manipulation Dataset, arXiv 2403.12945",
        (
            "Recorded extrinsics are often wrong; calibrations published later replace or reject them.",
            "The recorded pose is the arm's end; the tool centre point is an offset from it.",
        ),
    )

    def __init__(
        self,
        path: str,
        annotations: str | None = None,
        views: Views = None,
        outcomes: Sequence[str] = ("success",),
        tool_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        intrinsics_size: tuple[int, int] = (720, 1280),
        limits: Limits | None = None,
        closed_and_open: tuple[float, float] = (1.0, 0.0),
        longest_gap: float = 1.0,
        slack: int = 0,
        stride: int = 1,
    ) -> None:
        """List the recordings; none is read yet.

        Args:
            path: the folder that holds one folder per lab.
            annotations: folder of the files published later; recorded calibrations alone if left out.
            views: of wrist, ext1, ext2, or names for them, such as {ext1: front}; all that a recording has if
                left out.
            outcomes: success, failure.
            tool_offset: from the arm's end to the tool centre point, metres, in the tool's axes.
            intrinsics_size: height and width that published intrinsics are for.
            limits: when a calibration is accepted. Where it is not, the view keeps its pictures and its pose
                is NaN; the verdict is kept in the provenance.
            closed_and_open: what gripper_position is for a closed and an open gripper; [0, 0.085] where it is
                the opening in metres.
            longest_gap: seconds from one step to the next, by the recorded clocks, that are accepted.
            slack: pictures by which a video may be longer or shorter than the trajectory; the end is cut.
            stride: take every n-th frame.

        Raises:
            ValueError: no recordings, unknown views, or a stride that is not above 0.
            ImportError: h5py is missing.
        """
        h5()
        check_stride(stride, HZ)
        self.path, self.annotations, self.views, self.stride = path, annotations, views, stride
        self.outcomes, self.tool_offset, self.slack = tuple(outcomes), tuple(tool_offset), slack
        self.intrinsics_size, self.limits = tuple(intrinsics_size), limits or Limits()
        self.closed_and_open, self.longest_gap = tuple(closed_and_open), longest_gap
        if closed_and_open[0] == closed_and_open[1] or not longest_gap > 0:
            raise InvalidValue(
                f"closed_and_open is {closed_and_open} and longest_gap {longest_gap}: the first two must "
                "differ, the gap be above 0 seconds"
            )
        if views is not None and (not views or not set(views) <= set(VIEWS)):
            raise InvalidValue(f"views is {list(views)}; choose of {list(VIEWS)}")
        self._annotations = None if annotations is None else as_path(annotations)
        if self._annotations is not None and not self._annotations.is_dir():
            raise InvalidValue(f"annotations: {annotations} is not a folder; correct it, or leave it out")
        parts = [f"*/{name}/*/*/{file}" for name in outcomes for file in ("metadata_*.json", "trajectory.h5")]
        found = {file.parent for part in parts for file in as_path(path).glob(part)}
        self._folders = sorted(found)
        if not found:
            raise InvalidValue(
                f"{path} holds no recordings; expected <lab>/{'|'.join(outcomes)}/<date>/<time>/metadata_*"
            )

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Episode:
        folder = self._folders[index]
        metadata = _read_metadata(folder)
        uuid = str(metadata["uuid"])
        there = _serials(folder, metadata)
        names = chosen_views(self.views, unrenamed(list(there)), folder / "recordings" / "MP4")
        trajectory = _Trajectory.read(folder / "trajectory.h5", {name: there[name] for name in names})
        tool = pose_from_xyz_euler(trajectory.arm, f"{trajectory.path}, cartesian_position")
        tool[:, :3, 3] += tool[:, :3, :3] @ np.array(self.tool_offset)
        tracks = {
            names[name]: self._track(name, serial, folder, uuid, trajectory, tool)
            for name, serial in trajectory.serials.items()
        }
        _check_clocks(trajectory, self.longest_gap)
        actions = _actions(trajectory, tool, self.closed_and_open)
        length = min([len(actions), *(track.video.frames for track in tracks.values())])
        verdicts = {name: track.verdict.to_json() for name, track in tracks.items()}
        provenance = {key: metadata.get(key) for key in ("uuid", "lab", "building", "scene_id", "success")}
        return Episode(
            re.sub(r"[^A-Za-z0-9_-]", "_", uuid),
            _frames(tracks, actions, range(0, length, self.stride)),
            self._instructions(metadata),
            HZ / self.stride,
            {"source": "droid", **provenance, "calibration": verdicts},
        )

    def _instructions(self, metadata: Mapping[str, Any]) -> tuple[str, ...]:
        """The published phrasings, else the operator's instruction."""
        if self._annotations is not None and (found := phrasings(self._annotations, metadata["uuid"])):
            return found
        return (str(metadata.get("current_task") or ""),)

    def _track(
        self,
        name: str,
        serial: str,
        folder: AnyPath,
        uuid: str,
        trajectory: "_Trajectory",
        tool: Float[np.ndarray, "t 4 4"],
    ) -> "_Track":
        video = VideoFile.open(folder / "recordings" / "MP4" / f"{serial}.mp4")
        steps = len(tool)
        if abs(video.frames - steps) > self.slack:
            raise InvalidValue(
                f"{video.path} has {video.frames} pictures, trajectory.h5 {steps} steps; copy the recording "
                f"again, or allow a difference (slack: {abs(video.frames - steps)})"
            )
        pose, source = trajectory.extrinsics[name], "trajectory.h5"
        published = self._published(uuid, serial)
        if published is not None and name != "wrist":  # the hand's pose is one per step
            pose, source = np.tile(np.array(published[0]), (steps, 1)), published[1]
        poses = pose_from_xyz_euler(pose, f"{folder / source}, {name}")
        cameras = Cameras(
            torch.from_numpy(self._intrinsics(name, uuid, serial, video, trajectory)).expand(steps, 3, 3),
            torch.from_numpy(poses),
        )
        if name == "wrist":
            return _Track(video, cameras, check_hand_camera(poses, tool, source, self.limits))
        every = max(1, min(steps, video.frames) // self.limits.looks)
        looks = zip(range(0, steps, every), video.images(stride=every), strict=False)
        verdict = check_fixed_camera(cameras, tool[:, :3, 3], video.size, looks, source, self.limits)
        return _Track(video, cameras, verdict)

    def _published(self, uuid: str, serial: str) -> tuple[list[float], str] | None:
        return None if self._annotations is None else corrected_pose(self._annotations, uuid, serial)

    def _intrinsics(
        self, name: str, uuid: str, serial: str, video: VideoFile, trajectory: "_Trajectory"
    ) -> Float[np.ndarray, "3 3"]:
        """K for the video's pictures: the published one, scaled, or the recorded one."""
        published = self._annotations
        known = None if published is None else published_intrinsics(published, uuid, serial)
        k, size = (
            (trajectory.intrinsics.get(name), video.size) if known is None else (known, self.intrinsics_size)
        )
        if k is None:
            raise InvalidValue(
                f"{trajectory.path} has no intrinsics of camera {serial} ({name}), and annotations none of "
                f"{uuid}; give the folder with intrinsics.json (annotations: ...), or leave the view out"
            )
        scale = np.array(video.size) / np.array(size)
        if abs(scale[0] / scale[1] - 1) > 0.01:
            raise InvalidValue(
                f"{video.path} has pictures of {video.size}, the intrinsics are for {tuple(size)}, of "
                "another shape; correct intrinsics_size"
            )
        fitted = np.diag([scale[1], scale[0], 1.0]) @ k
        check_intrinsics(fitted[None], video.size, f"{video.path}, intrinsics of {name}")
        return np.asarray(fitted)


@dataclass(frozen=True)
class _Trajectory:
    """The numbers of trajectory.h5, checked.

    Attributes:
        path: the file.
        serials: serial number by view.
        arm: x y z, roll pitch yaw of the arm's end.
        closed: how far the gripper is closed.
        extrinsics: x y z, roll pitch yaw of each view's camera per step.
        intrinsics: K of the views that have one recorded.
        clocks: seconds at every step by the dataset's name, of those that were recorded: when the step began,
            when the robot's state was read, when each camera took its picture.
    """

    path: AnyPath
    serials: Mapping[str, str]
    arm: Float[np.ndarray, "t 6"]
    closed: Float[np.ndarray, "t"]
    extrinsics: Mapping[str, np.ndarray]
    intrinsics: Mapping[str, np.ndarray]
    clocks: Mapping[str, Float[np.ndarray, "t"]]

    @classmethod
    def read(cls, path: AnyPath, serials: Mapping[str, str]) -> "_Trajectory":
        try:
            with path.open("rb") as stream, h5().File(stream, "r") as file:
                arm = _dataset(file, path, f"{_STATE}/cartesian_position", 6, None)
                closed = _dataset(file, path, f"{_STATE}/gripper_position", 1, len(arm))[:, 0]
                names = {name: f"observation/camera_extrinsics/{s}_left" for name, s in serials.items()}
                extrinsics = {name: _dataset(file, path, key, 6, len(arm)) for name, key in names.items()}
                keys = {name: f"observation/camera_intrinsics/{s}_left" for name, s in serials.items()}
                intrinsics = {
                    name: _dataset(file, path, key, 9, None)[0].reshape(3, 3)
                    for name, key in keys.items()
                    if key in file
                }
                clocks = dict(_clocks(file, path, serials.values(), len(arm)))
        except OSError as error:
            raise InvalidValue(f"{path} cannot be read ({error}); copy the recording again") from error
        return cls(path, serials, arm, closed, extrinsics, intrinsics, clocks)


@dataclass(frozen=True)
class _Track:
    """One view: its video, its cameras and whether they are accepted."""

    video: VideoFile
    cameras: Cameras
    verdict: Verdict


def _serials(folder: AnyPath, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Serial number by view, of the views whose left video is there."""
    serials = {name: str(metadata.get(f"{name}_cam_serial") or "") for name in VIEWS}
    return {n: s for n, s in serials.items() if s and (folder / f"recordings/MP4/{s}.mp4").exists()}


def _dataset(file: Any, path: AnyPath, key: str, width: int, steps: int | None) -> Float[np.ndarray, "t w"]:
    if key not in file:
        raise InvalidValue(f"{path} has no {key!r}; copy the recording again, or leave the view out")
    values = np.asarray(file[key], dtype=np.float64)
    values = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
    if values.shape[1] != width or not len(values) or (steps is not None and len(values) != steps):
        raise InvalidValue(
            f"{path}, {key!r}: shape {values.shape}, expected {steps or 'some'} rows of {width} "
            "numbers; copy the recording again"
        )
    check_finite(values, f"{path}, {key!r}")
    return values


def _read_metadata(folder: AnyPath) -> dict[str, Any]:
    files: list[AnyPath] = sorted(folder.glob("metadata_*.json"))
    if len(files) != 1:
        raise InvalidValue(
            f"{folder} has {len(files)} files metadata_<uuid>.json, expected one; copy it again"
        )
    path = files[0]
    metadata = read_json(path)
    if not isinstance(metadata.get("uuid"), str):
        raise InvalidValue(f"{path} has no uuid, by which calibrations are found; copy the recording again")
    return metadata


def _clocks(
    file: Any, path: AnyPath, serials: Iterable[str], steps: int
) -> Iterator[tuple[str, Float[np.ndarray, "t"]]]:
    """The clocks that were recorded, in seconds."""
    milliseconds = [f"{_CLOCK}/cameras/{serial}_estimated_capture" for serial in serials]
    for key in (f"{_CLOCK}/control/step_start", *milliseconds):
        if key in file:
            yield key, _dataset(file, path, key, 1, steps)[:, 0] / 1e3
    whole, rest = (f"{_CLOCK}/robot_state/robot_timestamp_{unit}" for unit in ("seconds", "nanos"))
    if whole in file and rest in file:
        seconds, nanos = (_dataset(file, path, key, 1, steps)[:, 0] for key in (whole, rest))
        yield whole, seconds + nanos / 1e9


def _check_clocks(trajectory: _Trajectory, longest: float) -> None:
    """Check that the clocks have no gaps, so that step i was recorded at i / 15 s."""
    for key, clock in trajectory.clocks.items():
        seconds = np.diff(clock)
        bad = (seconds < 0) | (seconds > longest)
        if bad.any():
            step = int(bad.argmax())
            raise InvalidValue(
                f"{trajectory.path}, {key}: step {step + 1} comes {seconds[step]:.3g} s after step {step}, "
                f"expected {1 / HZ:.3f}, at most {longest:g}: the recording paused or was put together. "
                "Leave it out (on_error: skip), or accept such gaps (longest_gap: ...)"
            )


def _actions(
    trajectory: _Trajectory, tool: Float[np.ndarray, "t 4 4"], closed_and_open: Sequence[float]
) -> Float[np.ndarray, "t 8"]:
    quaternions = to_quaternion(trajectory.arm[:, 3:], "euler_xyz", str(trajectory.path))
    closed, opened = closed_and_open
    openness = (trajectory.closed[:, None] - closed) / (opened - closed)
    if (np.abs(openness - 0.5) > 0.5 + _REACH).any():
        low, high = trajectory.closed.min(), trajectory.closed.max()
        raise InvalidValue(
            f"{trajectory.path}: gripper_position lies between {low:.4g} and {high:.4g}, but closed_and_open "
            f"is {list(closed_and_open)}; set it to what a closed and an open gripper read"
        )
    openness = openness.clip(0, 1)
    return np.concatenate([tool[:, :3, 3], quaternions, openness], axis=1)


def _frames(
    tracks: Mapping[str, _Track], actions: Float[np.ndarray, "t 8"], numbers: range
) -> Iterator[Frame]:
    videos = [track.video.images(len(numbers), numbers.step) for track in tracks.values()]
    for number, images in zip(numbers, zip(*videos, strict=True), strict=True):
        views = {
            name: _view(image, track, number)
            for (name, track), image in zip(tracks.items(), images, strict=True)
        }
        yield Frame(views, actions[number], number / HZ)


def _view(image: np.ndarray, track: _Track, number: int) -> View:
    k, pose = track.cameras.intrinsics[number].numpy(), track.cameras.world_from_camera[number].numpy()
    return View(image, k, pose if track.verdict.kept else np.full((4, 4), np.nan))
