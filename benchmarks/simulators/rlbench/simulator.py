"""RLBench as a `benchmarks.simulator.Simulator`, in a process and an interpreter of its own.

It was never run with CoppeliaSim; docs/rlbench.md says what was run.
"""

import hashlib
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.cameras import Cameras
from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidValue
from benchmarks.simulator import (
    CHANGED,
    StepResult,
    Trial,
    check_trial,
    check_views,
    checked_action,
    fingerprint,
)
from benchmarks.simulators.rlbench import scene_shift
from benchmarks.simulators.rlbench.client import EnvironmentServer
from benchmarks.simulators.rlbench.task_list import VARIATIONS

VIEWS = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
PYTHON = "AI_WAM_RLBENCH_PYTHON"  # environment variable: the command of the simulator's interpreter
_ADAPTER = Path(__file__).with_name("environment_server") / "rlbench_world.py"
_ADVICE = "`ai-wam rlbench-doctor` says step by step what RLBench lacks here (docs/rlbench.md)"
_DEMO_HZ = 20.0  # RLBench steps its physics by 50 ms and records every step
_LIST = "benchmarks/simulators/rlbench/task_list.py"
_ARM_MODES = ("planning", "ik")
_MAX_SIZE = 2048
_SCENE_LIMIT = 0.02  # metres, radians or quaternion components; a state changed by more is another scene


class RLBench:
    """A Panda arm above a table in CoppeliaSim: 106 tasks by their file names, such as `close_laptop_lid`.

    Every scene is one that RLBench's expert has just solved: `reset` makes it demonstrate and restores the
    scene. The simulator keeps the demonstrations of its latest trials, so a trial that is reset again has the
    same scene and costs no new demonstration. The scene is drawn from the trial's seed; whether another
    process draws the same one depends on CoppeliaSim, and is seen by comparing `scene`.

    A control step is one call of RLBench's step: plan to the pose, move until it is reached, then actuate
    the gripper, which opens above 0.5. Simulated time per step varies, so `seconds` counts steps at the
    nominal rate. A step to whose pose no path is found moves nothing, the gripper included.

    The interpreter is the command in AI_WAM_RLBENCH_PYTHON ("xvfb-run -a /opt/rlbench/bin/python"), and
    COPPELIASIM_ROOT is the folder of CoppeliaSim; both belong to the machine, so they are not part of the
    protocol's hash.

    Args:
        image_size: height and width in pixels of all cameras.
        views: cameras that `observe` renders by default.
        control_hz: control steps per second; 20 or a whole fraction of it.
        arm_mode: "planning" (linear path, else RRTConnect) or "ik" (one Jacobian step, fails on far poses).
        shadows: RLBench's default renderer; without is faster.
        attempts: demonstrations tried before a scene is given up.
        reset_timeout: seconds within which a scene must be built; live demonstrations take tens of seconds.
        step_timeout: seconds until any other call must be answered.
        paths: folders put before the interpreter's own.

    Raises:
        ValueError: an argument out of range; the message says what is possible.
    """

    cameras: tuple[str, ...] = VIEWS
    shift_parts = scene_shift.PARTS
    incidental = ("paths",)  # differs between machines; the packages' versions are part of the result
    _pose: Float[np.ndarray, "8"] | None
    _demonstration: Float[np.ndarray, "n 8"] | None
    _diagnostics: dict[str, float]
    _rig: scene_shift.Rig | None

    def __init__(
        self,
        image_size: tuple[int, int] = (128, 128),
        views: Sequence[str] = VIEWS,
        control_hz: float = _DEMO_HZ,
        arm_mode: str = "planning",
        shadows: bool = True,
        attempts: int = 10,
        reset_timeout: float = 1200.0,
        step_timeout: float = 120.0,
        paths: Sequence[str] = (),
    ) -> None:
        self.image_size, self.views = (int(image_size[0]), int(image_size[1])), tuple(views)
        self.control_hz, self.arm_mode, self.shadows = float(control_hz), arm_mode, shadows
        self.attempts, self.paths = attempts, tuple(paths)
        self.reset_timeout, self.step_timeout = float(reset_timeout), float(step_timeout)
        self._every = self._check()
        settings = {"image_size": self.image_size, "arm_mode": arm_mode, "shadows": shadows}
        self._server = EnvironmentServer(
            _ADAPTER, settings, interpreter(), self.paths, environment(), advice=_ADVICE
        )
        self._rig, self._camera_ranges = None, None
        self._next_shift: Mapping[str, Any] = {}
        self._forget()

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {
            "image_size": list(self.image_size),
            "views": list(self.views),
            "control_hz": self.control_hz,
            "arm_mode": self.arm_mode,
            "shadows": self.shadows,
            "attempts": self.attempts,
            "reset_timeout": self.reset_timeout,
            "step_timeout": self.step_timeout,
            "paths": list(self.paths),
        }

    def tasks(self) -> Mapping[str, int]:
        """Names of the tasks with their numbers of variations."""
        return VARIATIONS

    def versions(self) -> Mapping[str, str]:
        """Versions of RLBench, PyRep, Python and numpy; empty until the simulator has started."""
        return self._server.versions

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """Find a scene that the expert solves, and restore it; returns its instructions.

        Raises:
            ValueError: unknown task or variation; ranges of a shift beyond what the running simulator can do.
            SimulatorCrash: no demonstration succeeded, or the process died or hung.
        """
        drawn, self._next_shift = self._next_shift, {}
        check_trial(trial, VARIATIONS, "RLBench", _LIST)
        self._forget()
        reply = self._server.call(
            "reset",
            self.reset_timeout,
            task=trial.task,
            variation=trial.variation,
            seed=trial.seed,
            attempts=self.attempts,
            shift=scene_shift.changes(drawn, self._usual_rig()) if drawn else {},
        )
        self._pose, self._demonstration = reply["pose"], reply["actions"]
        self._diagnostics["scene_change"] = reply["change"]
        same = reply["change"] <= _SCENE_LIMIT  # False for NaN
        self._scene = ("" if same else f"{CHANGED} ") + fingerprint(
            np.append(reply["state"], reply["distractors"])
        )
        return tuple(reply["instructions"])

    def check_shift(self, parts: Mapping[str, Any]) -> None:
        """Refuse ranges of a shift beyond what can be built.

        Where cameras are is known once the simulator runs: the first `reset` refuses ranges of theirs.

        Raises:
            ValueError: the message names the range and its limit here.
        """
        self._camera_ranges = parts.get("cameras")
        if "light" in parts:
            scene_shift.check_light(parts["light"])
        if self._rig is not None and self._camera_ranges is not None:
            self._rig.check(self._camera_ranges)

    def shift_definition(self) -> str:
        """Hash of the code that builds shifted scenes."""
        here = Path(__file__).parent
        files = ("scene_shift.py", "environment_server/shifted_scene.py", "../camera_moves.py")
        code = [(here / file).read_text(encoding="utf-8") for file in files]
        return hashlib.sha256("\0".join(code).encode()).hexdigest()

    def shift_next(self, drawn: Mapping[str, Any]) -> None:
        """Build the scene of the next reset with the drawn values of a shift."""
        self._next_shift = drawn

    def scene(self) -> str:
        """Fingerprint of the task's state at the beginning of the demonstration, and of distractors.

        It begins with "changed" if any number of the restored state differs from it by more than 0.02.
        """
        return self._scene

    def observe(self, views: Sequence[str] | None = None) -> Frame:
        """Render the named cameras (the configured ones if left out) and read the pose.

        Raises:
            ValueError: unknown camera.
            RuntimeError: before the first reset.
        """
        wanted, pose = self.views if views is None else tuple(views), self.pose()
        check_views(wanted, VIEWS, "RLBench")
        seen = self._server.call("observe", self.step_timeout, cameras=wanted) if wanted else {}
        pictures = {name: _view(name, **seen[name]) for name in wanted}
        return Frame(pictures, pose, self._steps / self.control_hz)

    def pose(self) -> Float[np.ndarray, "8"]:
        """The tip's pose now, and whether the gripper is open (1) or not (0), without rendering."""
        if self._pose is None:
            raise RuntimeError("RLBench: no scene yet; call reset(trial) first")
        return self._pose.copy()

    def step(self, action: np.ndarray) -> StepResult:
        """Plan to an absolute pose, move there, then open or close the gripper.

        Raises:
            ValueError: an action of another shape, not finite, or without an orientation.
            RuntimeError: before the first reset.
            SimulatorCrash: the process died or hung, or CoppeliaSim refused a call.
        """
        self.pose()
        target = checked_action(action, "RLBench")
        target[3:7] /= np.linalg.norm(target[3:7])  # RLBench refuses what float32 makes of unit quaternions
        reply = self._server.call("step", self.step_timeout, action=target)
        self._pose = reply["pose"]
        self._steps += 1
        for name, outcome in (("ik_failures", "ik_failure"), ("outside_workspace", "workspace")):
            self._diagnostics[name] += reply["outcome"] == outcome
        failed = reply["terminate"] and not reply["success"]
        return StepResult(reply["success"], failed, reached=reply["outcome"] == "reached")

    def demonstrate(self) -> Iterator[Float[np.ndarray, "8"]]:
        """The poses of the demonstration of this scene; the caller must step with each of them.

        Raises:
            RuntimeError: before the first reset, or after a step: it was recorded from the scene's beginning.
        """
        if self._demonstration is None or self._steps:
            raise RuntimeError(
                f"RLBench: a demonstration begins with its scene, and {self._steps} steps were made since; "
                "call reset(trial) first"
            )
        every = self._every
        kept = list(self._demonstration[every - 1 :: every])
        yield from kept if len(self._demonstration) % every == 0 else [*kept, self._demonstration[-1]]

    def diagnostics(self) -> Mapping[str, float]:
        """Steps without a path, steps out of the workspace, and how exactly the scene was restored.

        `scene_change` is the largest change of any number in the task's state (metres, quaternions, joints)
        between the beginning of the demonstration and that of the trial: 0 for exactly the same scene.
        """
        return dict(self._diagnostics)

    def close(self) -> None:
        """End the simulator; the next reset starts a new one."""
        self._server.close()
        self._forget()

    def _usual_rig(self) -> scene_shift.Rig:
        """Cameras and workspace as the simulator has them; read once, since every process loads one scene."""
        if self._rig is None:
            rig = scene_shift.Rig.of(self._server.call("rig", self.step_timeout), self.image_size)
            if self._camera_ranges is not None:
                rig.check(self._camera_ranges)
            self._rig = rig
        return self._rig

    def _forget(self) -> None:
        self._pose = self._demonstration = None
        self._steps, self._scene = 0, ""
        self._diagnostics = {"ik_failures": 0.0, "outside_workspace": 0.0, "scene_change": math.nan}

    def _check(self) -> int:
        every = round(_DEMO_HZ / self.control_hz) if self.control_hz > 0 else 0
        rules = {
            f"arm_mode {self.arm_mode!r} must be one of {list(_ARM_MODES)}": self.arm_mode in _ARM_MODES,
            f"image_size {self.image_size} must lie between 1 and {_MAX_SIZE} pixels": (
                1 <= min(self.image_size) <= max(self.image_size) <= _MAX_SIZE
            ),
            f"control_hz {self.control_hz} must be {_DEMO_HZ} or that divided by a whole number": (
                every >= 1 and math.isclose(every * self.control_hz, _DEMO_HZ)
            ),
            f"attempts {self.attempts} must be at least 1": self.attempts >= 1,
        }
        if broken := [rule for rule, kept in rules.items() if not kept]:
            raise InvalidValue("RLBench: " + "; ".join(broken))
        check_views(self.views, VIEWS, "RLBench")
        return every

    def __getstate__(self) -> dict[str, Any]:
        return self.settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{**state, "image_size": tuple(state["image_size"])})  # type: ignore[misc]


def interpreter() -> list[str]:
    """The command of the simulator's interpreter, from AI_WAM_RLBENCH_PYTHON; this one by default.

    Raises:
        ValueError: a command that a shell cannot split into words.
    """
    command = os.environ.get(PYTHON, "")
    try:
        return shlex.split(command) or [sys.executable]
    except ValueError as error:
        raise InvalidValue(f"{PYTHON} is {command!r}, which is no command: {error}; correct it") from error


def environment() -> dict[str, str]:
    """Environment variables that CoppeliaSim needs; empty where COPPELIASIM_ROOT is not set."""
    if "COPPELIASIM_ROOT" not in os.environ:
        return {}
    root = os.path.abspath(os.environ["COPPELIASIM_ROOT"])
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return {
        "COPPELIASIM_ROOT": root,
        "LD_LIBRARY_PATH": ":".join([*libraries, *([] if root in libraries else [root])]),
        "QT_QPA_PLATFORM_PLUGIN_PATH": root,
    }


def _view(name: str, image: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> View:
    """A picture with its camera in our convention.

    Raises:
        ValueError: positive focal lengths, which RLBench does not record.
    """
    if intrinsics[0, 0] >= 0 or intrinsics[1, 1] >= 0:
        raise InvalidValue(
            f"RLBench: the focal lengths of camera {name} are not negative, {np.diag(intrinsics)[:2]}; this "
            " is not the version of RLBench that docs/rlbench.md names"
        )
    camera = Cameras.from_rlbench(torch.from_numpy(intrinsics), torch.from_numpy(extrinsics))
    return View(image, camera.intrinsics.numpy(), camera.world_from_camera.numpy())
