"""The tabletop suite as a `benchmarks.simulator.Simulator`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidValue
from benchmarks.simulator import (
    StepResult,
    Trial,
    check_variation,
    check_views,
    checked_action,
    fingerprint,
)
from benchmarks.simulators import camera_moves, mujoco_changes
from benchmarks.simulators.mujoco_graphics import Lamp, Pictures, calibration
from benchmarks.simulators.tabletop import camera_rigs as rigs
from benchmarks.simulators.tabletop import panda, scene, scene_shift
from benchmarks.simulators.tabletop import robot_tasks as tasks
from benchmarks.simulators.tabletop.kinematics import Pose, Solution
from benchmarks.simulators.tabletop.physics_world import World, substeps
from benchmarks.simulators.tabletop.robot_tasks.base import TabletopTask, draw

_USUAL: Mapping[str, Any] = {}  # drawn values of no shift
_MAX_SIZE = 2048  # pixels; every software renderer has off-screen buffers of this size


class Tabletop:
    """A Panda arm above a table, in RLBench's world frame: tip poses, camera names and actions as there.

    Models and renderers are built when first needed, one set per task, so that an instance is cheap to make;
    a pickle has its settings only. A trial's scene and physics depend on its seed alone, not on trials before
    it. Only the thread that rendered the first picture can render others.

    Args:
        rig: "wide" (RLBench's front camera and 60 degrees for the others) or "framed" (the same names, aimed
            at the box where the task happens, with the smallest field of view that shows all of it).
        image_size: height and width in pixels.
        views: cameras that `observe` renders by default.
        control_hz: control steps per second.
        shadows: shadows and antialiasing, several times slower without a GPU.
        workspace: "wide" or "framed", the box that `reach_target` and random starts are drawn from; the one
            named as the rig if left out.
        randomise_start: probability that a trial begins at a random pose instead of the home pose, drawn from
            the trial's seed. The scene around is the same either way.

    Raises:
        ValueError: an argument out of range; the message says what is possible.
    """

    cameras: tuple[str, ...] = rigs.VIEWS
    shift_parts = scene_shift.PARTS
    _trial: Trial | None
    _shift: Mapping[str, Any]
    _next_shift: Mapping[str, Any]

    def __init__(
        self,
        rig: str = "wide",
        image_size: tuple[int, int] = (128, 128),
        views: Sequence[str] = rigs.VIEWS,
        control_hz: float = 20.0,
        shadows: bool = False,
        workspace: str | None = None,
        randomise_start: float = 0.0,
    ) -> None:
        self.rig, self.image_size, self.views = rig, (int(image_size[0]), int(image_size[1])), tuple(views)
        self.control_hz, self.shadows = float(control_hz), shadows
        self.workspace, self.randomise_start = workspace or rig, float(randomise_start)
        self._check()
        self._forget()

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "rig": self.rig,
            "image_size": list(self.image_size),
            "views": list(self.views),
            "control_hz": self.control_hz,
            "shadows": self.shadows,
            "workspace": self.workspace,
            "randomise_start": self.randomise_start,
        }

    def tasks(self) -> Mapping[str, int]:
        """Names of the tasks with their numbers of variations."""
        return {name: self._task(name).variations for name in tasks.names()}

    def definition(self, names: Sequence[str]) -> str:
        """Hash of the tasks' models, and of the code that places objects, moves the arm and finds success."""
        models = [self._xml(name, scene_shift.Extras()) for name in sorted(names)]
        files = (
            "kinematics.py",
            "physics_world.py",
            "robot_tasks/base.py",
            *(f"robot_tasks/{name}.py" for name in sorted(names)),
        )
        code = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file in files]
        return hashlib.sha256("\0".join(models + code).encode()).hexdigest()

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """Build the trial's scene; returns its instructions.

        Raises:
            ValueError: unknown task or variation.
        """
        drawn, self._next_shift = self._next_shift, _USUAL
        task = self._task(trial.task)
        check_variation(trial, task.variations)
        was_usual, self._shift = not self._shift, drawn
        world = self._restored_world(trial.task)
        of_scene, of_start = (np.random.default_rng([trial.seed, stream]) for stream in (0, 1))
        task.outside = self._shift.get("layout", {}).get("outside", 0.0)
        task.place(world, of_scene, trial.variation)
        self._apply_shift(world, task)
        if self._starts_at_random(of_start):
            _place_arm_at_random(world, task, of_start)
        else:
            world.place_arm(panda.HOME)
        if not was_usual or self._shift:
            self._calibrations.clear()
            for pictures in self._pictures.values():
                pictures.upload_textures()
        self._trial, self._steps, self._scene = trial, 0, _fingerprint(world)
        task.status(world)
        if "instruction" in self._shift:
            return task.unseen_instructions(trial.variation)
        return task.instructions(trial.variation)

    def check_shift(self, parts: Mapping[str, Any]) -> None:
        """Refuse ranges of a shift beyond what can be built.

        Raises:
            ValueError: the message names the range and its limit here.
        """
        if "cameras" in parts:
            for name in tasks.names():
                region = self._task(name).region
                mounts = rigs.mounts(self.rig, region)
                camera_moves.check_moves(parts["cameras"], mounts, region, mujoco_changes.WIDEST)

    def shift_definition(self) -> str:
        """Hash of the code that builds shifted scenes."""
        files = ("scene_shift.py", "../mujoco_changes.py", "../camera_moves.py")
        code = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file in files]
        return hashlib.sha256("\0".join(code).encode()).hexdigest()

    def shift_next(self, drawn: Mapping[str, Any]) -> None:
        """Build the scene of the next reset with the drawn values of a shift."""
        self._next_shift = drawn

    def scene(self) -> str:
        """Fingerprint of all poses and colours at the beginning of the trial."""
        return self._scene

    def observe(self, views: Sequence[str] | None = None) -> Frame:
        """Render the named cameras (the configured ones if left out) and read the pose.

        Raises:
            RuntimeError: before the first reset, or no OpenGL platform.
            ValueError: unknown camera.
        """
        world, name = self._current()
        wanted = self.views if views is None else tuple(views)
        check_views(wanted, rigs.VIEWS, "Tabletop")
        if wanted and name not in self._pictures:
            self._pictures[name] = Pictures(world.model, self.image_size, self._with_shadows(self._extras))
        pictures = {view: self._view(world, name, view) for view in wanted}
        return Frame(views=pictures, action=world.pose(), seconds=self._steps / self.control_hz)

    def pose(self) -> Float[np.ndarray, "8"]:
        """The tip's pose now and the openness last commanded, without rendering."""
        return self._current()[0].pose()

    def step(self, action: np.ndarray) -> StepResult:
        """Follow an absolute action of 8 numbers for one control step.

        For a pose out of reach the arm keeps its last commanded pose, and `reached` is False.

        Raises:
            ValueError: an action of another shape, not finite, or without an orientation.
        """
        world, name = self._current()
        target = checked_action(action, "Tabletop")
        reached = world.follow(Pose(target[:3], target[3:7] / np.linalg.norm(target[3:7])), float(target[7]))
        self._steps += 1
        status = self._task(name).status(world)
        return StepResult(success=status.success, failed=status.failed, reached=reached)

    def demonstrate(self) -> Iterator[Float[np.ndarray, "8"]]:
        """The scripted expert's actions from the present state on; the caller must step with each of them."""
        world, name = self._current()
        return self._task(name).expert(world)

    def diagnostics(self) -> Mapping[str, float]:
        """Task-specific metrics of the trial so far."""
        world, name = self._current()
        return self._task(name).diagnostics(world)

    def versions(self) -> Mapping[str, str]:
        """Empty: the suite runs in this process."""
        return {}

    def close(self) -> None:
        """Release the OpenGL contexts; the next reset builds anew what it needs."""
        self._close_worlds()
        self._forget()

    def _close_worlds(self) -> None:
        for pictures in self._pictures.values():
            pictures.close()
        self._pictures.clear()
        self._worlds.clear()

    def _check(self) -> None:
        rules = {
            f"rig {self.rig!r} must be one of {list(rigs.RIGS)}": self.rig in rigs.RIGS,
            f"workspace {self.workspace!r} must be one of {list(rigs.WORKSPACES)}": (
                self.workspace in rigs.WORKSPACES
            ),
            f"image_size {self.image_size} must lie between 1 and {_MAX_SIZE} pixels": (
                1 <= min(self.image_size) <= max(self.image_size) <= _MAX_SIZE
            ),
            f"control_hz {self.control_hz} must lie between 1 and 100": 1 <= self.control_hz <= 100,
            f"randomise_start {self.randomise_start} must lie between 0 and 1": (
                0 <= self.randomise_start <= 1
            ),
        }
        broken = [rule for rule, kept in rules.items() if not kept]
        if broken:
            raise InvalidValue("Tabletop: " + "; ".join(broken))
        check_views(self.views, rigs.VIEWS, "Tabletop")

    def _forget(self) -> None:
        self._tasks: dict[str, TabletopTask] = {}
        self._worlds: dict[str, World] = {}
        self._pictures: dict[str, Pictures] = {}
        self._calibrations: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self._usual: dict[str, mujoco_changes.UsualModel] = {}
        self._extras = scene_shift.Extras()
        self._lamps: tuple[Lamp, ...] = ()  # of the present trial, beside the model's
        self._shift = self._next_shift = _USUAL
        self._trial = None
        self._steps, self._scene = 0, ""

    def __getstate__(self) -> dict[str, Any]:
        return self.settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{**state, "image_size": tuple(state["image_size"])})  # type: ignore[misc]

    def _task(self, name: str) -> TabletopTask:
        if name not in self._tasks:
            self._tasks[name] = tasks.load(name, rigs.WORKSPACES[self.workspace])
        return self._tasks[name]

    def _restored_world(self, name: str) -> World:
        """The task's world in its usual state, with the lamps and bodies that the present shift needs."""
        extras = scene_shift.Extras.of(self._shift)
        if extras != self._extras:
            self._close_worlds()
            self._extras = extras
        if name not in self._worlds:
            self._worlds[name] = world = World(self._xml(name, extras), self.control_hz)
            self._usual[name] = mujoco_changes.UsualModel(world.model, scene_shift.CHANGED)
        world = self._worlds[name]
        self._usual[name].restore(world.model)
        world.reset()
        return world

    def _apply_shift(self, world: World, task: TabletopTask) -> None:
        """Change cameras, lamps, colours and distractors of a placed scene."""
        drawn, self._lamps = self._shift, ()
        if "distractors" in drawn:
            scene_shift.distract(world, drawn["distractors"])
        if "light" in drawn:
            self._lamps = mujoco_changes.light(world.model, drawn["light"])
        if "appearance" in drawn:
            scene_shift.paint(world, drawn["appearance"])
        if "cameras" in drawn:
            mounts = rigs.mounts(self.rig, task.region)
            for view, mount in camera_moves.all_moved(mounts, drawn["cameras"], task.region).items():
                mujoco_changes.put_camera(world.model, view, mount)

    def _starts_at_random(self, rng: np.random.Generator) -> bool:
        usual = bool(rng.uniform() < self.randomise_start)
        return self._shift["start"]["random"] if "start" in self._shift else usual

    def _with_shadows(self, extras: scene_shift.Extras) -> bool:
        return self.shadows if extras.shadows is None else extras.shadows

    def _xml(self, name: str, extras: scene_shift.Extras) -> str:
        task = self._task(name)
        timestep = 1 / self.control_hz / substeps(self.control_hz)
        mounts = rigs.mounts(self.rig, task.region)
        bodies, shadows = task.bodies() + extras.mjcf(), self._with_shadows(extras)
        return scene.mjcf(bodies, task.assets(), mounts, self.image_size, timestep, shadows)

    def _current(self) -> tuple[World, str]:
        if self._trial is None:
            raise RuntimeError("Tabletop: no scene yet; call reset(trial) first")
        return self._worlds[self._trial.task], self._trial.task

    def _view(self, world: World, name: str, view: str) -> View:
        camera = world.model.camera(view).id
        if (name, view) not in self._calibrations or view == "wrist":  # the only one that moves
            self._calibrations[name, view] = calibration(world.model, world.data, camera, self.image_size)
        image = self._pictures[name].draw(world.data, camera, self._lamps)
        return View(image, *self._calibrations[name, view])


def _place_arm_at_random(world: World, task: TabletopTask, rng: np.random.Generator) -> None:
    """Put the arm at a random pose that it can reach."""

    def sample() -> Solution:
        return world.kinematics.solve(task.random_start(world, rng), panda.HOME)

    world.place_arm(draw(sample, lambda solution: solution.reached, "reachable random start").joints)


def _fingerprint(world: World) -> str:
    parts = (world.data.qpos, world.data.geom_xpos, world.data.geom_xmat, world.model.geom_rgba)
    return fingerprint(np.concatenate([np.ravel(part) for part in parts]))
