"""Reads RLBench demonstrations in the layout of stepjam/RLBench and in PerAct's; needs no RLBench.

The layouts::

    <path>/<task>/variation0/variation_descriptions.pkl               stepjam: phrasings per variation
    <path>/<task>/variation0/episodes/episode0/low_dim_obs.pkl        the demonstration without its pictures
                                              /front_rgb/0.png        one folder per camera
                                              /front_depth/0.png      24-bit depth, read if asked for
    <path>/<task>/all_variations/episodes/episode0/low_dim_obs.pkl    PerAct: the same, and per episode
                                                  /variation_number.pkl, variation_descriptions.pkl

Mask pictures are not read. Poses are Panda_tip's in the world. RLBench writes a negative focal length because
its camera's x and y axes point left and up; both are turned here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, Frame, SourceCard, View
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path
from datamodules.reading.depth import rlbench_depth
from datamodules.reading.pictures_and_text import (
    check_finite,
    check_follows,
    check_stride,
    numbered,
    read_picture,
)
from datamodules.reading.safe_pickle import Shell, load_pickle
from datamodules.reading.view_names import Views, chosen_views, unrenamed

VIEWS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
_OFF_CENTRE = 2.0  # pixels between twice the principal point and a picture's side
_DEMO, _NUMBER, _DESCRIPTIONS = "low_dim_obs.pkl", "variation_number.pkl", "variation_descriptions.pkl"


class Demo(Shell):
    """Stands in for `rlbench.demo.Demo`: its `_observations`."""


class Observation(Shell):
    """Stands in for `rlbench.backend.observation.Observation`: `gripper_pose`, `gripper_open`, `misc`."""


_SHELLS = {("rlbench.demo", "Demo"): Demo, ("rlbench.backend.observation", "Observation"): Observation}


class RLBenchDemos:
    """Every demonstration below a folder: by task, then variation, then number of the episode."""

    card = SourceCard(
        "RLBench demonstrations",
        "other",
        "https://github.com/stepjam/RLBench",
        "James et al., RLBench: The Robot Learning Benchmark & Learning Environment, arXiv 1909.12271",
        (
            "RLBench's licence is for non-commercial use; the demonstrations may have further terms.",
            "Pictures are rendered; the motion is a planner's, at 20 Hz.",
        ),
    )

    def __init__(
        self,
        path: str,
        tasks: Sequence[str] | None = None,
        views: Views = None,
        stride: int = 1,
        hz: float = 20.0,
        depth: bool = False,
    ) -> None:
        """List the demonstrations; none is read yet.

        Args:
            path: the folder that holds one folder per task.
            tasks: names of tasks; all that are there if left out.
            views: cameras, such as front and wrist, or names for them, such as {wrist: hand}; all that an
                episode has if left out.
            stride: take every n-th frame.
            hz: recorded steps per second: 20 at the simulator's usual step of 50 ms.
            depth: read the 24-bit depth pictures too, as metres.

        Raises:
            ValueError: no demonstrations, an unknown task, or a stride or rate that is not above 0.
        """
        check_stride(stride, hz)
        self.path, self.tasks, self.views, self.stride, self.hz = path, tasks, views, stride, hz
        self.depth = depth
        root = as_path(path)
        names = tasks or sorted(folder.name for folder in root.glob("*") if folder.is_dir())
        found = {name: _episodes(root / name) for name in names}
        empty = [name for name in tasks or [] if not found[name]]
        self._folders = [folder for folders in found.values() for folder in folders]
        if empty or not self._folders:
            raise InvalidValue(
                f"{path} holds no demonstrations of {empty or 'any task'}; expected {path}/<task>/"
                f"(variation<N> or all_variations)/episodes/episode<M>/{_DEMO}"
            )

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Episode:
        folder = self._folders[index]
        variation_folder = folder.parent.parent
        task, variation = variation_folder.parent.name, _variation(folder)
        steps = _Steps.read(folder, self._views(folder), self.depth)
        provenance = {"source": "rlbench", "task": task, "variation": variation, "episode": folder.name}
        return Episode(
            f"{task}-{variation_folder.name}-{folder.name}",
            _frames(steps, range(0, len(steps.actions), self.stride), self.hz),
            _instructions(folder),
            self.hz / self.stride,
            provenance,
        )

    def _views(self, folder: AnyPath) -> dict[str, str]:
        there = [name for name in VIEWS if (folder / f"{name}_rgb").is_dir()]
        return chosen_views(self.views, unrenamed(there), folder)


@dataclass(frozen=True)
class _Steps:
    """A demonstration's numbers, checked."""

    folder: AnyPath
    views: Mapping[str, str]  # our name by theirs
    actions: Float[np.ndarray, "t 8"]
    cameras: Mapping[str, Cameras]
    planes: Mapping[str, Float[np.ndarray, "t 2"]]  # near and far, of views whose depth is read

    @classmethod
    def read(cls, folder: AnyPath, views: Mapping[str, str], depth: bool) -> "_Steps":
        path = folder / _DEMO
        demo = load_pickle(path, _SHELLS)
        observations = getattr(demo, "_observations", None)
        if not isinstance(demo, Demo) or not observations:
            raise InvalidValue(
                f"{path} holds no observations (a {type(demo).__name__}); expected a saved RLBench Demo"
            )
        for name in views:
            for kind in ("rgb", "depth") if depth else ("rgb",):
                _check_pictures(folder / f"{name}_{kind}", len(observations), path)
        tool = [
            [*_entry(step, "gripper_pose", path, i), _entry(step, "gripper_open", path, i)]
            for i, step in enumerate(observations)
        ]
        actions = np.array(tool, dtype=np.float64)
        check_finite(actions, f"{path}, gripper_pose and gripper_open")
        cameras = {name: _cameras(observations, name, path) for name in views}
        if "wrist" in cameras:
            at = f"{path}, misc['wrist_camera_extrinsics']"
            check_follows(cameras["wrist"].world_from_camera.numpy(), actions[:, :3], at)
        for name in views:
            _check_centre(cameras[name], folder / f"{name}_rgb" / "0.png", path)
        planes = {name: _planes(observations, name, path) for name in views} if depth else {}
        return cls(folder, views, actions, cameras, planes)

    def depth(self, name: str, number: int) -> Float[np.ndarray, "h w"] | None:
        """Metres; None where depth was not asked for."""
        if name not in self.planes:
            return None
        picture = read_picture(self.folder / f"{name}_depth" / f"{number}.png")
        return rlbench_depth(picture, *self.planes[name][number].tolist())


def _episodes(task: AnyPath) -> list[AnyPath]:
    variations = [*task.glob("variation[0-9]*"), *task.glob("all_variations")]
    found = [
        sorted((variation / "episodes").glob("episode[0-9]*"), key=numbered)
        for variation in sorted(variations, key=numbered)
    ]
    return [episode for episodes in found for episode in episodes]


def _variation(folder: AnyPath) -> int:
    if (folder / _NUMBER).exists():
        number = load_pickle(folder / _NUMBER)
        if not isinstance(number, int | np.integer):
            raise InvalidValue(f"{folder / _NUMBER} holds {number!r}, expected a number; copy the file again")
        return int(number)
    name = folder.parent.parent.name
    if name == "all_variations":
        raise InvalidValue(
            f"{folder / _NUMBER} is missing, and the folder all_variations does not name the variation; "
            "copy the episode again"
        )
    return int(name.removeprefix("variation"))


def _instructions(folder: AnyPath) -> tuple[str, ...]:
    """Phrasings of the episode where it has its own, else of the variation."""
    own = folder / _DESCRIPTIONS
    return read_phrasings(own if own.exists() else folder.parent.parent / _DESCRIPTIONS)


def read_phrasings(path: AnyPath) -> tuple[str, ...]:
    """The pickled list of a `variation_descriptions.pkl`.

    Raises:
        ValueError: it holds something else.
    """
    lines = load_pickle(path)
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise InvalidValue(f"{path} holds {lines!r}, expected a list of phrasings; copy the file again")
    return tuple(lines)


def _check_pictures(folder: AnyPath, steps: int, demo: AnyPath) -> None:
    there = {file.name for file in folder.glob("[!.]*.png")}
    missing = [number for number in range(steps) if f"{number}.png" not in there]
    extra = len(there) - (steps - len(missing))
    if missing or extra:
        raise InvalidValue(
            f"{folder}: {demo.name} has {steps} steps, but pictures {missing[:5]} are missing and {extra} "
            "are too many; copy the episode again or leave the view out"
        )


def _entry(step: Any, name: str, path: AnyPath, number: int) -> Any:
    value = getattr(step, name, None)
    if value is None:
        raise InvalidValue(
            f"{path}, step {number}: {name} was not recorded; record with obs_config.{name}=True"
        )
    return value


def _check_centre(cameras: Cameras, picture: AnyPath, path: AnyPath) -> None:
    """RLBench's principal point is the middle of the picture, so it gives the size that K belongs to."""
    h, w = read_picture(picture).shape[:2]
    x, y = (2 * cameras.intrinsics[0, [0, 1], 2]).tolist()
    if abs(x - w) > _OFF_CENTRE or abs(y - h) > _OFF_CENTRE:
        raise InvalidValue(
            f"{path}: K of {picture.parent.name} belongs to pictures of {x:g} x {y:g} pixels (width x "
            f"height), {picture.name} has {w} x {h}: it was resized or cropped. Save pictures as they were "
            "rendered, or record the episode again at this size"
        )


def _planes(observations: Sequence[Any], name: str, path: AnyPath) -> Float[np.ndarray, "t 2"]:
    keys = [f"{name}_camera_{plane}" for plane in ("near", "far")]
    values = [[(getattr(step, "misc", None) or {}).get(key, np.nan) for key in keys] for step in observations]
    planes = np.array(values, dtype=np.float64)
    check_finite(planes, f"{path}, misc{keys}")
    if not ((planes[:, 0] > 0) & (planes[:, 0] < planes[:, 1])).all():
        step = int((~((planes[:, 0] > 0) & (planes[:, 0] < planes[:, 1]))).argmax())
        raise InvalidValue(
            f"{path}, step {step}: misc{keys} are {planes[step].tolist()} metres, expected 0 < near < far; "
            "record the episode again, or leave depth out (depth: false)"
        )
    return planes


def _cameras(observations: Sequence[Any], name: str, path: AnyPath) -> Cameras:
    """The camera at every step, in OpenCV's axes."""
    stacks = []
    for key, size in ((f"{name}_camera_intrinsics", 3), (f"{name}_camera_extrinsics", 4)):
        values = [(getattr(step, "misc", None) or {}).get(key) for step in observations]
        if any(value is None or np.shape(value) != (size, size) for value in values):
            raise InvalidValue(
                f"{path}: misc[{key!r}] is no {size}x{size} matrix in every step; demonstrations of RLBench "
                "before 1.1 lack it: record them again, or leave the view out (views: ...)"
            )
        stacks.append(np.array(values, dtype=np.float64))
        check_finite(stacks[-1], f"{path}, misc[{key!r}]")
    return opencv_cameras(stacks[0], stacks[1], f"{path}, {name}")


def opencv_cameras(
    intrinsics: Float[np.ndarray, "t 3 3"], extrinsics: Float[np.ndarray, "t 4 4"], at: str
) -> Cameras:
    """Matrices as RLBench writes them, with the axes turned where the focal lengths are negative.

    Raises:
        ValueError: focal lengths of both signs, or zero; `at` says where they come from.
    """
    k, pose = torch.from_numpy(intrinsics), torch.from_numpy(extrinsics)
    focal = k[:, [0, 1], [0, 1]]
    if (focal < 0).all():
        return Cameras.from_rlbench(k, pose)
    if (focal > 0).all():  # a recording whose axes were turned already
        return Cameras(k, pose)
    raise InvalidValue(
        f"{at}: the intrinsics have focal lengths {focal[0].tolist()} of both signs or zero, so the camera's "
        "axes are unknown; leave the view out (views: ...)"
    )


def _frames(steps: _Steps, numbers: Sequence[int], hz: float) -> Iterator[Frame]:
    for number in numbers:
        views = {}
        for name, cameras in steps.cameras.items():
            image = read_picture(steps.folder / f"{name}_rgb" / f"{number}.png")
            k, pose = cameras.intrinsics[number], cameras.world_from_camera[number]
            views[steps.views[name]] = View(image, k.numpy(), pose.numpy(), steps.depth(name, number))
        yield Frame(views, steps.actions[number], number / hz)
