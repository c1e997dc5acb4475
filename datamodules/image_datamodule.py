"""A user's own pictures as the input of `ai-wam predict`, described in docs/predict.md."""

import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import Float, UInt8
from torch.utils.data import DataLoader

from ai_wam.action_images import ActionImageTokenizer, DecodeStatus
from ai_wam.camera_checks import check_intrinsics, place_in_picture
from ai_wam.cameras import Cameras
from ai_wam.episodes import Frame
from ai_wam.errors import InvalidValue
from ai_wam.types import Batch, Clip, Observation
from ai_wam.video import iterate_video
from datamodules.cameras.calibration import Calibration
from datamodules.cameras.vggt import Vggt
from datamodules.reading.pictures_and_text import read_picture
from datamodules.reading.rotations import to_quaternion
from datamodules.sources.picture_cameras import read_cameras

Points = dict[str, list[list[float] | None]]  # three pixels [x, y] per view, null for hidden ones
_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
_REASONS = {
    DecodeStatus.OFFSCREEN: "each of the three points must be given in two views at least",
    DecodeStatus.INCONSISTENT: "no pose explains the pixels; check the points' order and the cameras",
    DecodeStatus.DEGENERATE: "the views are too close together to find the depth; use other views",
}
_CLICK = 0.005  # standard deviation of a click, of the picture's shorter side


class ImagesDataModule(lightning.LightningDataModule):
    """One observation, a picture per view, with one or several instructions; for prediction only.

    Everything is read and checked when this is built, before any model moves to an accelerator.
    """

    def __init__(
        self,
        clip: Clip,
        images: dict[str, str] | None = None,
        cameras: str | None = None,
        prompt: str | list[str] | None = None,
        pose: list[float] | None = None,
        points: Points | None = None,
        openness: float = 1.0,
        axis_length: float = 0.1,
        baseline: float | None = None,
        vggt: str | None = None,
        name: str = "input",
        missing_views: bool = False,
    ) -> None:
        """Read and check the input.

        Args:
            clip: frames, stride, size and views of the model.
            images: a file per view, named as in the clip; of a video the last frame is used.
            cameras: JSON as in docs/predict.md, RLBench's `misc` as JSON, or a folder with a COLMAP text
                model.
            prompt: what is to be done; several instructions make several samples.
            pose: the gripper now, in the cameras' world: x y z in metres, quaternion x y z w, openness.
            points: instead of the pose, pixels [x, y] per view in the picture as it is: the tool centre
                point, the point `axis_length` along the tool's x axis, the one as far against its z axis.
            openness: of the gripper, 0 to 1, where `points` are given.
            axis_length: metres from the tool centre point to the other two points.
            baseline: metres between the first two views' cameras; scales a world of another unit, which
                COLMAP's and VGGT's are.
            vggt: instead of `cameras`, a folder or hub id of VGGT's weights that estimate them. The world is
                then the first view's camera frame, its unit set by `baseline`.
            name: of the sample; its folder's name, and the seed of the model's noise.
            missing_views: accept pictures of only some of the model's views, to see what it generates;
                actions are decoded where two views or more are given.

        Raises:
            ValueError: input that is missing, unreadable or contradicts itself; the message says which.
        """
        super().__init__()
        self.clip = clip
        prompts = _prompts(prompt)
        files = _files(images or {}, clip, prompts, missing_views)
        _check_sources(cameras, vggt, baseline, pose, points)
        _check_name(name)
        _check_openness(openness)
        action = None if pose is None else checked_pose(pose)  # before VGGT, which is slow
        pictures = {view: _picture(file) for view, file in files.items()}
        if cameras is None:
            calibrations = Vggt(str(vggt)).estimate(pictures)
        else:
            sizes = {view: (picture.shape[0], picture.shape[1]) for view, picture in pictures.items()}
            others = set(clip.views) - set(files)
            calibrations = read_cameras(Path(cameras), files, sizes, others)
        own_unit = cameras is not None and Path(cameras).is_dir()
        rig = _rig(calibrations, baseline, own_unit)
        for view, each in rig.items():
            check_intrinsics(each.intrinsics, each.size, f"view {view!r}")
        if action is None:
            action = _pose_of_points(points or {}, rig, openness, axis_length)
        _check_near_pictures(action, rig)
        views = {view: each.view(pictures[view], 0) for view, each in rig.items()}
        keys = [name] if len(prompts) == 1 else [f"{name}-{number}" for number in range(len(prompts))]
        frames = [Frame(views, action, 0.0)] * len(prompts)
        self.batch = _batch(Observation.from_frames(frames, prompts, keys, clip), clip)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """One sample per instruction."""
        rows: Any = range(len(self.batch.keys))
        return cast("DataLoader[Batch]", DataLoader(rows, batch_size=1, collate_fn=self.batch.rows))


def _prompts(prompt: str | list[str] | None) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    if not prompts:
        raise InvalidValue(
            "no prompt: say what is to be done (--data.prompt='open the drawer'); an empty string is for "
            "models trained without instructions"
        )
    return prompts


def _files(images: dict[str, str], clip: Clip, prompts: Sequence[str], some: bool) -> dict[str, Path]:
    """The pictures' files in the clip's order."""
    if not images:
        raise InvalidValue(
            f"there is a prompt ({prompts[0]!r}) but no image; name a file for each view of the model, "
            f"{list(clip.views)}: --data.images.{clip.views[0]}=picture.png"
        )
    if unknown := sorted(set(images) - set(clip.views)):
        raise InvalidValue(
            f"images are given for views {unknown}, which the model does not have; its views are "
            f"{list(clip.views)}"
        )
    if (absent := [view for view in clip.views if view not in images]) and not some:
        raise InvalidValue(
            f"there is no image of the views {absent}, which the model was trained with; give "
            f"--data.images.{absent[0]}, or accept that they are missing (--data.missing_views=true): two or "
            "more are needed to read actions"
        )
    files = {view: Path(images[view]) for view in clip.views if view in images}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise InvalidValue(f"there is no image {missing[0]!r}; check images: {images}")
    return files


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise InvalidValue(f"name {name!r} names a folder: letters, digits, - and _ only")


def _check_sources(
    cameras: str | None,
    vggt: str | None,
    baseline: float | None,
    pose: list[float] | None,
    points: Points | None,
) -> None:
    if (cameras is None) == (vggt is None):
        raise InvalidValue(
            f"cameras is {cameras!r} and vggt {vggt!r}: give exactly one, a camera file (docs/predict.md) or "
            "VGGT's weights to estimate the cameras with"
        )
    if (pose is None) == (points is None):
        raise InvalidValue(
            f"pose is {pose} and points {points}: give exactly one of the gripper's pose and the pixels of "
            "its three points in at least two views"
        )
    if vggt is not None and baseline is None:
        raise InvalidValue(
            "vggt estimates cameras without a unit of length; measure the distance between the first two "
            "views' cameras in metres and give it as baseline"
        )
    if baseline is not None and not 0 < baseline < np.inf:
        raise InvalidValue(f"baseline must be above 0 metres, got {baseline}")


def _picture(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A picture, or the last frame of a video."""
    if file.suffix.lower() not in _VIDEOS:
        return read_picture(file)
    try:
        with file.open("rb") as stream:
            last = deque(iterate_video(stream), maxlen=1)
    except (OSError, ValueError, FFmpegError) as error:
        raise InvalidValue(f"{file}: {error}; give a video with at least one frame, or a picture") from error
    if not last:
        raise InvalidValue(f"{file} is a video without frames; give one with at least one, or a picture")
    return last[0]


def _rig(
    calibrations: dict[str, Calibration], baseline: float | None, own_unit: bool
) -> dict[str, Calibration]:
    """The cameras in metres; `own_unit` says whether they have a unit of their own, as COLMAP's do."""
    if baseline is None and not own_unit:
        return calibrations
    if len(calibrations) < 2:
        raise InvalidValue(
            f"baseline ({baseline} m) is the distance between two cameras; there is only {list(calibrations)}"
        )
    first, second = [each.world_from_camera[0, :3, 3] for each in list(calibrations.values())[:2]]
    distance = float(np.linalg.norm(second - first))
    if baseline is None:
        raise InvalidValue(
            f"COLMAP's models have a unit of length of their own; in this one the cameras of "
            f"{list(calibrations)[:2]} are {distance:.6g} apart. Measure their distance in metres and "
            "give it as baseline (that number itself, where the model is known to be in metres)"
        )
    if distance < 1e-9:
        raise InvalidValue(
            f"the cameras {list(calibrations)[:2]} are at the same place: no baseline scales them"
        )
    return {view: each.enlarged(baseline / distance) for view, each in calibrations.items()}


def checked_pose(pose: Sequence[float]) -> Float[np.ndarray, "8"]:
    """The pose that a person gave, with a unit quaternion.

    Args:
        pose: x y z in metres, quaternion x y z w of any non-zero length, openness.

    Raises:
        ValueError: no such eight numbers.
    """
    values = np.array(pose, dtype=np.float64)
    if values.shape != (8,) or not np.isfinite(values).all():
        raise InvalidValue(
            f"pose must be x y z (metres), quaternion x y z w, openness: 8 numbers; got {pose}"
        )
    _check_openness(values[7])
    values[3:7] = to_quaternion(values[None, 3:7], "quaternion_xyzw", "pose")[0]
    return values


def _check_openness(openness: float) -> None:
    if not 0 <= openness <= 1:
        raise InvalidValue(f"openness must lie between 0 (closed) and 1 (open), got {openness}")


def _pose_of_points(
    points: Points,
    rig: dict[str, Calibration],
    openness: float,
    axis_length: float,
) -> Float[np.ndarray, "8"]:
    """The pose of the three points at the given pixels, by the tokenizer's own fit."""
    if not set(points) <= set(rig) or len(points) < 2:
        raise InvalidValue(
            f"points are given for views {sorted(points)}; a pose needs at least two of the views {list(rig)}"
        )
    views = [view for view in rig if view in points]
    pixels = np.stack([_straight(_pixels(view, points[view]), rig[view]) for view in views])
    used = Cameras(*(_stack(rig, views, part) for part in ("intrinsics", "world_from_camera")))
    size = min((rig[view].size for view in views), key=min)
    tokenizer = ActionImageTokenizer(axis_length=axis_length)
    found = tokenizer.locate(
        torch.from_numpy(pixels)[None, :, None],
        torch.tensor([[openness]]),
        used[None, :, None],
        size,
        pixel_std=max(0.5, _CLICK * min(size)),
    )
    if not bool(found.valid.all()):
        reason = DecodeStatus(int(found.status[0, 0]))
        raise InvalidValue(f"points: no pose in the views {views} ({reason.name}: {_REASONS[reason]})")
    return found.actions[0, 0].numpy()


def _pixels(view: str, points: list[list[float] | None]) -> Float[np.ndarray, "3 2"]:
    """The three points of a view; NaN where one is hidden."""
    filled = [[np.nan, np.nan] if point is None else point for point in points]
    if len(filled) != 3 or any(len(point) != 2 for point in filled):
        raise InvalidValue(
            f"points of view {view!r} must be three pixels [x, y] (centre, along x, against z; null for a "
            f"hidden one), got {points}"
        )
    return np.array(filled, dtype=np.float64)


def _straight(pixels: Float[np.ndarray, "3 2"], camera: Calibration) -> Float[np.ndarray, "3 2"]:
    """Pixels of the picture after removing the lens's distortion."""
    return pixels if camera.lens is None else camera.lens.straighten(pixels, camera.intrinsics[0])


def _stack(rig: dict[str, Calibration], views: list[str], part: str) -> Float[torch.Tensor, "v n n"]:
    return torch.from_numpy(np.stack([getattr(rig[view], part)[0] for view in views]))


def _check_near_pictures(action: Float[np.ndarray, "8"], rig: dict[str, Calibration]) -> None:
    """Refuse a gripper far outside a picture: its pose and the camera are not in one world frame."""
    point = torch.from_numpy(action[:3]).double()
    for view, each in rig.items():
        camera = Cameras(torch.from_numpy(each.intrinsics[0]), torch.from_numpy(each.world_from_camera[0]))
        where, near = place_in_picture(camera, point, each.size)
        if not near:
            raise InvalidValue(
                f"view {view!r}: the gripper at {action[:3].round(4).tolist()} m lies {where}, far outside "
                "of the picture. Give pose and cameras in one world frame, in metres, check the direction of "
                "this camera's matrix, or leave the view out"
            )


def _batch(observation: Observation, clip: Clip) -> Batch:
    """The observation as a clip of which only the first frame is valid."""
    b, v = observation.view_mask.shape
    known = torch.arange(clip.frames) == 0
    video = torch.zeros(b, v, 3, clip.frames, *clip.size)
    video[:, :, :, :1] = observation.video
    actions = torch.zeros(b, clip.frames, 8)
    actions[:, 0] = observation.action
    return Batch(
        video=video,
        cameras=observation.cameras.map(lambda m: m.expand(-1, -1, clip.frames, -1, -1).contiguous()),
        view_mask=observation.view_mask,
        video_valid=known.repeat(b, 1),
        recorded=known.repeat(b, 1),
        actions=actions,
        action_valid=known.repeat(b, 1),
        prompts=observation.prompts,
        keys=observation.episodes,
    )
