"""Runs RLBench in the server process, with RLBench's own names and conventions.

Written for stepjam/RLBench 02720bb on stepjam/PyRep 8f420be. All of RLBench's randomness is numpy's global
generator, but the simulator has state besides it: seeding alone does not restore a scene. A live
demonstration followed by `reset_to_demo` does, so every scene here is one that RLBench's expert just solved.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
        mode = RenderMode.OPENGL3 if shadows else RenderMode.OPENGL
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
        self._demos: dict[tuple[str, int, int], Demo] = {}
        self._words: dict[
            tuple[str, int, int], list[str]
        ] = {}  # the instructions of each, when first restored
        self._solved = self._over = False

    def versions(self) -> dict[str, str]:
        """Versions of RLBench and PyRep."""
        found = {"rlbench": rlbench.__version__}
        try:
            found["pyrep"] = version("pyrep")
        except PackageNotFoundError:  # on a path, not installed
            found["pyrep"] = "unknown"
        return found

    def reset(self, task: str, variation: int, seed: int, attempts: int) -> dict[str, Any]:
        """Build a scene that the expert has just solved, restored to its beginning.

        Returns:
            "instructions", "pose" of the tip and openness, "actions" of the demonstration (one per 50 ms),
            the task's "state" where it began and "change": how far any number of the state is from that now.
        """
        self._look((), state=True)
        np.random.seed(seed)  # RLBench draws from the global generator
        with _losing(f"no scene of {task}, variation {variation}"):
            self._live = scene = self._environment.get_task(name_to_task_class(task))
            scene.set_variation(variation)
            scene.reset()  # the first one notes variation 0, whichever it is, and a demonstration keeps that
            demo = self._demonstration(scene, (task, variation, seed), attempts)
            instructions, now = scene.reset_to_demo(demo)
            if (got := demo[0].misc["variation_index"]) != variation:
                raise ValueError(f"{task}: asked for variation {variation}, got {got}")
            if instructions != (known := self._words.setdefault((task, variation, seed), instructions)):
                raise ValueError(f"{task}: the scene came back with {instructions}, it had {known}")
        self._solved = self._over = False
        return {
            "instructions": instructions,
            "pose": _pose(now),
            "actions": np.stack([_pose(observation) for observation in demo[1:]]),
            "state": demo[0].task_low_dim_state,
            "change": _change(demo[0].task_low_dim_state, now.task_low_dim_state),
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

    def _demonstration(self, scene: TaskEnvironment, key: tuple[str, int, int], attempts: int) -> Demo:
        """The kept demonstration of a scene, or a live one."""
        demo = self._demos.pop(key, None)
        if demo is None:
            (demo,) = scene.get_demos(1, live_demos=True, max_attempts=attempts)
            self._words.pop(key, None)
        self._demos[key] = demo  # the latest last
        if len(self._demos) > _KEPT:
            oldest = next(iter(self._demos))
            del self._demos[oldest]
            self._words.pop(oldest, None)
        return demo

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
