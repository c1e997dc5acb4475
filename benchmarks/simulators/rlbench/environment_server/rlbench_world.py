"""Runs RLBench in the server process, with RLBench's own names and conventions.

Written for stepjam/RLBench 02720bb on stepjam/PyRep 8f420be. All of RLBench's randomness is numpy's global
generator, but the simulator has state besides it: seeding alone does not restore a scene. A live
demonstration followed by `reset_to_demo` does, so every scene here is one that RLBench's expert just solved.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import rlbench
from pyrep.const import RenderMode
from pyrep.errors import ConfigurationPathError, IKError
from rlbench.action_modes.action_mode import MoveArmThenGripper
from rlbench.action_modes.arm_action_modes import EndEffectorPoseViaIK, EndEffectorPoseViaPlanning
from rlbench.action_modes.gripper_action_modes import Discrete
from rlbench.backend.exceptions import InvalidActionError
from rlbench.backend.observation import Observation
from rlbench.backend.scene import Scene
from rlbench.demo import Demo
from rlbench.environment import Environment
from rlbench.observation_config import CameraConfig, ObservationConfig
from rlbench.task_environment import TaskEnvironment
from rlbench.utils import name_to_task_class

from .shifted_scene import ShiftedScene, free_places

CAMERAS = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
_KEPT = 64  # demonstrations, one per trial: several policies and references run the same trials in turn
_REACHED_METRES, _REACHED_RADIANS = 1e-4, 1e-3  # how near a pose counts as the present one


class LostTrial(Exception):
    """RLBench cannot continue with this scene; the server's answer has `lost` set."""

    lost = True


@contextmanager
def _losing(what: str) -> Iterator[None]:
    """Context in which every error loses the trial only, since RLBench and PyRep raise dozens of kinds."""
    try:
        yield
    except Exception as error:
        raise LostTrial(f"{what}: {type(error).__name__}: {error}") from error


class Planning(EndEffectorPoseViaPlanning):
    """Plans to poses other than the present one; for that one, physics advances one step and the arm holds.

    PyRep's path to the present pose has the length 0, by which it divides: the joints become NaN.
    """

    def action(self, scene: Scene, action: np.ndarray) -> None:
        """Move the arm there."""
        if _reached(np.asarray(scene.robot.arm.get_tip().get_pose()), action):
            scene.step()
        else:
            super().action(scene, action)


@dataclass
class _Solved:
    """What is kept of a trial, so that the next policy gets the same scene.

    Attributes:
        demo: the demonstration; None until one succeeds.
        instructions: when it was first restored.
        distractors: rows of `free_places` by seed and number, as they lay in the demonstration.
    """

    demo: Demo | None = None
    instructions: list[str] | None = None
    distractors: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)


_RENDERERS = {True: RenderMode.OPENGL3, False: RenderMode.OPENGL, None: None}  # by whether there are shadows
_ARM_MODES = {"planning": Planning, "ik": EndEffectorPoseViaIK}


class World:
    """One CoppeliaSim with at most one task in it.

    Args:
        image_size: height and width in pixels, of all five cameras.
        arm_mode: "planning" or "ik".
        shadows: the renderer with shadows, RLBench's own choice, instead of the faster one.
    """

    def __init__(self, image_size: list[int], arm_mode: str, shadows: bool) -> None:
        height, width = image_size
        mode = _RENDERERS[shadows]
        cameras = {
            # A camera that sees nothing at launch would be taken out of the scene.
            f"{name}_camera": CameraConfig(
                depth=False, point_cloud=False, mask=False, image_size=[width, height], render_mode=mode
            )
            for name in CAMERAS
        }
        self._config = ObservationConfig(**cameras, joint_forces=False, joint_velocities=False)
        action_mode = MoveArmThenGripper(_ARM_MODES[arm_mode](), Discrete())
        if "COPPELIASIM_ROOT" in os.environ:  # importing OpenCV points Qt to its own plug-ins
            os.environ["QT_QPA_PLATFORM_PLUGIN_PATH"] = os.environ["COPPELIASIM_ROOT"]
        self._environment = Environment(action_mode, obs_config=self._config, headless=True)
        self._environment.launch()
        self._live: TaskEnvironment | None = None
        self._scene = ShiftedScene()
        self._kept: dict[tuple[str, int, int], _Solved] = {}
        self._solved = self._over = False

    def versions(self) -> dict[str, str]:
        """Versions of RLBench and PyRep."""
        found = {"rlbench": rlbench.__version__}
        try:
            found["pyrep"] = version("pyrep")
        except PackageNotFoundError:  # on a path, not installed
            found["pyrep"] = "unknown"
        return found

    def rig(self) -> dict[str, Any]:
        """The usual cameras and the plane on the table where tasks are placed; see `ShiftedScene.rig`."""
        with _losing("rig"):
            self._scene.read(self._loaded())
            return self._scene.rig()

    def reset(
        self, task: str, variation: int, seed: int, attempts: int, shift: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build a scene that the expert has just solved, restored to its beginning.

        Args:
            task: its file's name.
            variation: which of the task's.
            seed: of RLBench's draws.
            attempts: demonstrations tried.
            shift: what differs from the usual scene, in the demonstration already: "cameras" and "light" as
                `ShiftedScene` takes them, "distractors" with "count" and "seed".

        Returns:
            "instructions", "pose" of the tip and openness, "actions" of the demonstration (one per 50 ms),
            the task's "state" where it began, "change": how far any number of the state is from that now, and
            "distractors": rows of `free_places`.
        """
        self._look((), state=True)
        np.random.seed(seed)  # RLBench draws from the global generator
        with _losing(f"no scene of {task}, variation {variation}"):
            kept = self._keep((task, variation, seed))
            self._live = scene = self._shifted(task, variation, shift or {}, kept)
            if kept.demo is None:
                (kept.demo,) = scene.get_demos(1, live_demos=True, max_attempts=attempts)
            demo = kept.demo
            instructions, now = scene.reset_to_demo(demo)
            if (got := demo[0].misc["variation_index"]) != variation:
                raise ValueError(f"{task}: asked for variation {variation}, got {got}")
            kept.instructions = kept.instructions or instructions
            if instructions != kept.instructions:
                raise ValueError(
                    f"{task}: the scene came back with {instructions}, it had {kept.instructions}"
                )
        self._solved = self._over = False
        return {
            "instructions": instructions,
            "pose": _pose(now),
            "actions": np.stack([_pose(observation) for observation in demo[1:]]),
            "state": demo[0].task_low_dim_state,
            "change": _change(demo[0].task_low_dim_state, now.task_low_dim_state),
            "distractors": self._distractors,
        }

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """Move the arm, then the gripper.

        Returns:
            "outcome" ("reached", "ik_failure" or "workspace"), "success", "terminate" and the "pose" now.
        """
        self._look(())
        task, outcome = self._task, "reached"
        with _losing("step"):
            try:
                seen, reward, terminate = task.step(action)
                self._solved, self._over = reward > 0.5, bool(terminate)
            except InvalidActionError as error:
                outcome, seen = _outcome(error), task.get_observation()
        return {"outcome": outcome, "success": self._solved, "terminate": self._over, "pose": _pose(seen)}

    def observe(self, cameras: list[str]) -> dict[str, Any]:
        """Images of the named cameras with RLBench's intrinsics and camera-to-world "extrinsics"."""
        self._look(cameras)
        task = self._task
        with _losing("observe"):
            seen = task.get_observation()
            return {
                name: {
                    "image": getattr(seen, f"{name}_rgb"),
                    "intrinsics": np.asarray(seen.misc[f"{name}_camera_intrinsics"]),
                    "extrinsics": np.asarray(seen.misc[f"{name}_camera_extrinsics"]),
                }
                for name in cameras
            }

    def close(self) -> None:
        """End CoppeliaSim."""
        self._environment.shutdown()

    def _keep(self, key: tuple[str, int, int]) -> _Solved:
        """What is kept of a trial, the latest last; the oldest is forgotten."""
        kept = self._kept[key] = self._kept.pop(key, _Solved())
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return kept

    def _loaded(self) -> str | None:
        return None if self._live is None else self._live.get_name()

    def _shifted(self, task: str, variation: int, shift: dict[str, Any], kept: _Solved) -> TaskEnvironment:
        """The task in a scene with other cameras, lamps and objects."""
        self._scene.restore()
        if shift:
            self._scene.read(self._loaded())
        scene = self._environment.get_task(name_to_task_class(task))
        scene.set_variation(variation)
        scene.reset()  # the first one notes variation 0, whichever it is, and a demonstration keeps that
        if "cameras" in shift:
            self._scene.move_cameras(shift["cameras"])
        if "light" in shift:
            light = dict(shift["light"])
            self._scene.light(mode=_RENDERERS[light.pop("shadows")], **light)
        self._distractors = np.empty((0, 8))
        if "distractors" in shift:
            self._strew(scene, kept, **shift["distractors"])
        return scene

    def _strew(self, scene: TaskEnvironment, kept: _Solved, count: int, seed: int) -> None:
        """Let distractors lie around the task's objects wherever a reset places those.

        Live demonstrations reset the scene by themselves, so this is done in the scene's own `reset`.
        """
        usual = scene.reset

        def reset(demo: Demo | None = None) -> Any:
            self._scene.clear()
            answer = usual(demo)
            if demo is None or (seed, count) not in kept.distractors:
                kept.distractors[seed, count] = free_places(scene.get_name(), count, seed)
            self._distractors = kept.distractors[seed, count]
            self._scene.put_up(self._distractors)
            return answer

        scene.reset = reset

    @property
    def _task(self) -> TaskEnvironment:
        if self._live is None:  # the process is new: the one before it died with its scene
            raise LostTrial("no scene yet; call reset first")
        return self._live

    def _look(self, cameras: list[str] | tuple[str, ...], state: bool = False) -> None:
        """Set what the next observations contain, since rendering costs more than all the rest."""
        for name in CAMERAS:
            getattr(self._config, f"{name}_camera").rgb = name in cameras
        self._config.task_low_dim_state = state


def _reached(pose: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two poses, x y z and quaternion x y z w, are the same for a planner."""
    apart = min(np.linalg.norm(pose[3:] - wanted[3:]), np.linalg.norm(pose[3:] + wanted[3:]))
    return bool(np.linalg.norm(pose[:3] - wanted[:3]) < _REACHED_METRES and 2 * apart < _REACHED_RADIANS)


def _pose(seen: Observation) -> np.ndarray:
    pose = np.append(seen.gripper_pose, seen.gripper_open).astype(np.float64)
    if not np.isfinite(pose).all():
        raise LostTrial(f"the arm's pose is {pose.tolist()}, which is not finite")
    return pose


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(before - after).max()) if before.shape == after.shape else float("nan")


def _outcome(error: InvalidActionError) -> str:
    """RLBench's reason to refuse an action: known by a cause from PyRep, or by the words of its message."""
    if isinstance(error.__cause__, (IKError, ConfigurationPathError)):
        return "ik_failure"
    if "workspace" in str(error):
        return "workspace"
    raise error
