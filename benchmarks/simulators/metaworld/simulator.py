"""Meta-World as a `benchmarks.simulator.Simulator`; docs/metaworld.md says what was measured."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidValue
from benchmarks.simulator import (
    StepResult,
    Trial,
    check_trial,
    check_views,
    checked_action,
    fingerprint,
)
from benchmarks.simulators.metaworld import camera_rigs as rigs
from benchmarks.simulators.metaworld import library, task_world
from benchmarks.simulators.metaworld.task_list import INSTRUCTIONS, VARIATIONS
from benchmarks.simulators.metaworld.task_world import TaskWorld
from benchmarks.simulators.mujoco_graphics import Pictures, calibration

_LIST = "benchmarks/simulators/metaworld/task_list.py"
_MAX_SIZE = 2048  # pixels; every software renderer has off-screen buffers of this size
_KEPT = 4  # worlds of the latest tasks; one takes 25 MB, and half a second to build anew


class MetaWorld:
    """A Sawyer arm above a table, in Meta-World's world frame: 50 tasks by their plain names, such as `push`.

    A pose is that of the hand, whose centre lies 4.5 cm above the fingertips. Meta-World moves the hand
    without turning it: positions are followed, and a step towards a pose turned by more than 30 degrees, or
    more than 2 cm out of the hand's limits, is not `reached`. 1 - 2 x openness is the published effort of the
    fingers, a force: below an openness of 1/2 they close as far as an object lets them.

    A trial's scene depends on its seed alone; it is a scene that Meta-World builds from that draw. Success at
    any step counts, as published. The package is imported by the first `reset`; a pickle has settings only.

    Args:
        rig: "published" (Meta-World's cameras; those that hang upside down are turned upright) or "framed"
            (cameras named as the tabletop's, aimed at the box where tasks happen).
        image_size: height and width in pixels.
        views: cameras that `observe` renders by default; all of the rig's if left out.
        shadows: shadows and antialiasing, several times slower without a GPU.

    Raises:
        ValueError: an argument out of range; the message says what is possible.
    """

    control_hz: float = task_world.CONTROL_HZ
    cameras: tuple[str, ...]
    _trial: Trial | None

    def __init__(
        self,
        rig: str = "framed",
        image_size: tuple[int, int] = (128, 128),
        views: Sequence[str] | None = None,
        shadows: bool = False,
    ) -> None:
        self.rig, self.image_size = rig, (int(image_size[0]), int(image_size[1]))
        self.shadows = shadows
        self._check()
        self.cameras = tuple(rigs.RIGS[rig])
        self.views = self.cameras if views is None else tuple(views)
        check_views(self.views, self.cameras, "MetaWorld")
        self._forget()

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "rig": self.rig,
            "image_size": list(self.image_size),
            "views": list(self.views),
            "shadows": self.shadows,
        }

    def tasks(self) -> Mapping[str, int]:
        """Names of the tasks with their numbers of variations, 1 each."""
        return VARIATIONS

    def definition(self, names: Sequence[str]) -> str:
        """Hash of the packages' versions, the phrasings, and the code of scenes, control and cameras."""
        code = [Path(str(file.__file__)).read_text(encoding="utf-8") for file in (task_world, rigs)]
        said = [phrase for name in sorted(names) for phrase in (name, *INSTRUCTIONS[name])]
        parts = (library.METAWORLD, library.MUJOCO, *said, *code)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """Build the trial's scene; returns its instructions.

        Raises:
            ValueError: unknown task or variation.
            ModuleNotFoundError: the extra `metaworld` is not installed.
            RuntimeError: it is there in another version.
        """
        check_trial(trial, VARIATIONS, "Meta-World", _LIST)
        world = self._world(trial.task)
        world.reset(trial.seed)
        self._trial, self._steps, self._scene = trial, 0, fingerprint(world.state())
        return INSTRUCTIONS[trial.task]

    def scene(self) -> str:
        """Fingerprint of the positions of all bodies and marks at the beginning of the trial."""
        return self._scene

    def observe(self, views: Sequence[str] | None = None) -> Frame:
        """Render the named cameras (the configured ones if left out) and read the pose.

        Raises:
            RuntimeError: before the first reset, or no OpenGL platform.
            ValueError: unknown camera.
        """
        world, name = self._current()
        wanted = self.views if views is None else tuple(views)
        check_views(wanted, self.cameras, "MetaWorld")
        if wanted and name not in self._pictures:
            self._pictures[name] = Pictures(world.model, self.image_size, self.shadows)
        pictures = {view: self._view(world, self._pictures[name], view) for view in wanted}
        return Frame(views=pictures, action=world.pose(), seconds=self._steps / self.control_hz)

    def pose(self) -> Float[np.ndarray, "8"]:
        """The hand's pose now and the openness last commanded, without rendering."""
        return self._current()[0].pose()

    def step(self, action: np.ndarray) -> StepResult:
        """Follow an absolute action of 8 numbers for one control step.

        A pose that the hand cannot have is followed as far as it goes, and `reached` is False.

        Raises:
            ValueError: an action of another shape, not finite, or without an orientation.
        """
        world, _ = self._current()
        reached = world.follow(checked_action(action, "MetaWorld"))
        self._steps += 1
        return StepResult(success=world.solved, failed=False, reached=reached)

    def demonstrate(self) -> Iterator[Float[np.ndarray, "8"]]:
        """The scripted expert's actions from the present state on; the caller must step with each of them."""
        return self._current()[0].expert()

    def diagnostics(self) -> Mapping[str, float]:
        """Meta-World's `near_object` and `obj_to_target`, and its reward (0 to 10), after the last step."""
        return self._current()[0].diagnostics()

    def versions(self) -> Mapping[str, str]:
        """Versions of Meta-World and of Gymnasium, on which it builds, once a scene was built."""
        if self._trial is None:
            return {}
        return {name: version(name) for name in ("metaworld", "gymnasium")}

    def close(self) -> None:
        """Release the OpenGL contexts; the next reset builds anew what it needs."""
        for task in tuple(self._worlds):
            self._discard(task)
        self._forget()

    def _check(self) -> None:
        rules = {
            f"rig {self.rig!r} must be one of {list(rigs.RIGS)}": self.rig in rigs.RIGS,
            f"image_size {self.image_size} must lie between 1 and {_MAX_SIZE} pixels": (
                1 <= min(self.image_size) <= max(self.image_size) <= _MAX_SIZE
            ),
        }
        if broken := [rule for rule, kept in rules.items() if not kept]:
            raise InvalidValue("MetaWorld: " + "; ".join(broken))

    def _forget(self) -> None:
        self._worlds: dict[str, TaskWorld] = {}
        self._pictures: dict[str, Pictures] = {}
        self._trial = None
        self._steps, self._scene = 0, ""

    def __getstate__(self) -> dict[str, Any]:
        return self.settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{**state, "image_size": tuple(state["image_size"])})  # type: ignore[misc]

    def _world(self, task: str) -> TaskWorld:
        """The task's world, which becomes the latest; the one unused for longest makes room for a new one."""
        world = self._worlds.pop(task, None)
        if world is None:
            if len(self._worlds) >= _KEPT:
                self._discard(next(iter(self._worlds)))
            world = TaskWorld(library.load(), task)
            self._prepare_pictures(world.model)
        self._worlds[task] = world
        return world

    def _prepare_pictures(self, model: Any) -> None:
        rigs.install(model, self.rig)
        model.vis.global_.offheight, model.vis.global_.offwidth = self.image_size
        if not self.shadows:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0

    def _discard(self, task: str) -> None:
        self._worlds.pop(task).close()
        if task in self._pictures:
            self._pictures.pop(task).close()

    def _current(self) -> tuple[TaskWorld, str]:
        if self._trial is None:
            raise RuntimeError("MetaWorld: no scene yet; call reset(trial) first")
        return self._worlds[self._trial.task], self._trial.task

    def _view(self, world: TaskWorld, pictures: Pictures, view: str) -> View:
        camera = world.model.camera(rigs.RIGS[self.rig][view]).id
        intrinsics, pose = calibration(world.model, world.data, camera, self.image_size)
        image, pose = rigs.upright(self.rig, view, pictures.draw(world.data, camera), pose)
        return View(image, intrinsics, pose)
