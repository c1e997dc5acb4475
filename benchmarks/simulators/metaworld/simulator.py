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
from benchmarks.simulators import camera_moves, mujoco_changes
from benchmarks.simulators.metaworld import camera_rigs as rigs
from benchmarks.simulators.metaworld import library, task_world
from benchmarks.simulators.metaworld.task_list import INSTRUCTIONS, VARIATIONS
from benchmarks.simulators.metaworld.task_world import TaskWorld
from benchmarks.simulators.mujoco_graphics import Lamp, Pictures, calibration

_USUAL: Mapping[str, Any] = {}  # drawn values of no shift
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
        rig: "published" (Meta-World's cameras, `gripperPOV` as "wrist"; those upside down are turned upright)
            or "framed" (cameras named as the tabletop's, aimed at the box where tasks happen).
        image_size: height and width in pixels.
        views: cameras that `observe` renders by default; all of the rig's if left out.
        shadows: shadows and antialiasing, several times slower without a GPU.

    Raises:
        ValueError: an argument out of range; the message says what is possible.
    """

    control_hz: float = task_world.CONTROL_HZ
    cameras: tuple[str, ...]
    shift_parts = frozenset({"cameras", "light", "start"})
    _trial: Trial | None
    _next_shift: Mapping[str, Any]

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
        said = [phrase for name in sorted(names) for phrase in (name, *INSTRUCTIONS[name])]
        parts = (library.METAWORLD, library.MUJOCO, *said, *_code(task_world, rigs))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """Build the trial's scene; returns its instructions.

        Raises:
            ValueError: unknown task or variation.
            ModuleNotFoundError: the extra `metaworld` is not installed.
            RuntimeError: it is there in another version.
        """
        drawn, self._next_shift = self._next_shift, _USUAL
        check_trial(trial, VARIATIONS, "Meta-World", _LIST)
        world = self._world(trial.task)
        self._apply(drawn, world.model, trial.task)
        world.reset(trial.seed, task_world.random_start(trial.seed) if _starts_at_random(drawn) else None)
        self._trial, self._steps, self._scene = trial, 0, fingerprint(world.state())
        return INSTRUCTIONS[trial.task]

    def check_shift(self, parts: Mapping[str, Any]) -> None:
        """Refuse ranges of a shift beyond what can be built.

        Raises:
            ValueError: the message names the range and its limit here.
            ModuleNotFoundError: the extra `metaworld` is not installed; its own cameras are moved.
        """
        if "cameras" in parts:
            mounts = rigs.framed_mounts() if self.rig == "framed" else self._published_mounts()
            widest, points = mujoco_changes.WIDEST, rigs.framed_points()
            camera_moves.check_moves(parts["cameras"], mounts, rigs.REGION, widest, points)

    def shift_definition(self) -> str:
        """Hash of the code that builds shifted scenes."""
        return hashlib.sha256("\0".join(_code(mujoco_changes, camera_moves)).encode()).hexdigest()

    def shift_next(self, drawn: Mapping[str, Any]) -> None:
        """Build the scene of the next reset with the drawn values of a shift."""
        self._next_shift = drawn

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
        if wanted and (name, self._shaded) not in self._pictures:
            self._pictures[name, self._shaded] = self._new_pictures(world.model)
        pictures = {view: self._view(world, self._pictures[name, self._shaded], view) for view in wanted}
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
        self._pictures: dict[tuple[str, bool], Pictures] = {}  # by task, and whether with shadows
        self._usual: dict[str, mujoco_changes.UsualModel] = {}
        self._lamps: tuple[Lamp, ...] = ()  # of the present trial, beside the model's
        self._shaded, self._next_shift = self.shadows, _USUAL
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
            rigs.install(world.model, self.rig)
            self._usual[task] = mujoco_changes.UsualModel(world.model)
        self._worlds[task] = world
        return world

    def _published_mounts(self) -> dict[str, camera_moves.Mount]:
        """Of any task: they are the same in all."""
        task = next(iter(VARIATIONS))
        world = self._world(task)
        self._usual[task].restore(world.model)
        return rigs.mounts(world.model, self.rig)

    def _apply(self, drawn: Mapping[str, Any], model: Any, task: str) -> None:
        """Change a model's cameras and light, beginning with the usual ones."""
        self._usual[task].restore(model)
        self._lamps, self._shaded = (), self.shadows
        if "light" in drawn:
            self._lamps = mujoco_changes.light(model, drawn["light"])
            if drawn["light"]["shadows"] is not None:
                self._shaded = drawn["light"]["shadows"]
        if "cameras" in drawn:
            names, mounts = rigs.RIGS[self.rig], rigs.mounts(model, self.rig)
            for view, mount in camera_moves.all_moved(
                mounts, drawn["cameras"], rigs.REGION, rigs.framed_points()
            ).items():
                mujoco_changes.put_camera(model, names[view], mount)

    def _new_pictures(self, model: Any) -> Pictures:
        """Of the right size and quality, which are read from the model while pictures are made."""
        quality, size = model.vis.quality, model.vis.global_
        size.offheight, size.offwidth = self.image_size
        published = quality.offsamples, quality.shadowsize
        if not self._shaded:
            quality.offsamples = quality.shadowsize = 0
        try:
            return Pictures(model, self.image_size, self._shaded)
        finally:
            quality.offsamples, quality.shadowsize = published

    def _discard(self, task: str) -> None:
        self._worlds.pop(task).close()
        del self._usual[task]
        for shaded in (False, True):
            if (task, shaded) in self._pictures:
                self._pictures.pop((task, shaded)).close()

    def _current(self) -> tuple[TaskWorld, str]:
        if self._trial is None:
            raise RuntimeError("MetaWorld: no scene yet; call reset(trial) first")
        return self._worlds[self._trial.task], self._trial.task

    def _view(self, world: TaskWorld, pictures: Pictures, view: str) -> View:
        camera = world.model.camera(rigs.RIGS[self.rig][view]).id
        intrinsics, pose = calibration(world.model, world.data, camera, self.image_size)
        return View(pictures.draw(world.data, camera, self._lamps), intrinsics, pose)


def _starts_at_random(drawn: Mapping[str, Any]) -> bool:
    return "start" in drawn and drawn["start"]["random"]


def _code(*modules: Any) -> list[str]:
    return [Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules]
