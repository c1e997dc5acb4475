"""The few names of RLBench that our adapter imports, over a world of one flying hand and one ball.

What matters is as in the real one: numpy's global generator, one launch, a launch that changes the folder and
prints, cameras that vanish when they see nothing at launch, negative focal lengths, unit quaternions, errors
with their causes. RLBENCH_DOUBLE=<fault>:<call>:<number> makes that call of the process go wrong; "flaky"
lets live demonstrations fail as the planner does: half of them, drawn outside numpy's generator.
"""

import ctypes
import math
import os
import random
import sys
import time

import numpy as np
from pyrep import ConfigurationPathError, IKError, RenderMode, register, things

__version__ = "1.2.0"
START = np.array([0.278, -0.008, 1.472, 0.0, 0.993, 0.0, 0.121])
FRONT = np.array([[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1.0]])
BASE, REACH, RADIUS = np.array([-0.2687, 0.0, 1.1]), 0.8, 0.03
CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
SENSORS = {
    "left_shoulder": "cam_over_shoulder_left",
    "right_shoulder": "cam_over_shoulder_right",
    **{name: f"cam_{name}" for name in ("overhead", "wrist", "front")},
}
_calls = {}


def fault(call):
    """Go wrong here if the environment says so."""
    kind, name, number = (os.environ.get("RLBENCH_DOUBLE", "") + "::").split(":")[:3]
    _calls[call] = _calls.get(call, 0) + 1
    if call != name or _calls[call] != int(number):
        return
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "hang":
        time.sleep(60)
    elif kind == "refuse":
        raise RuntimeError("The call failed on the V-REP side. Return value: -1")
    elif kind == "unheard":
        raise WaypointError("a waypoint of the task is gone")


class InvalidActionError(Exception):
    pass


class TaskEnvironmentError(Exception):
    pass


class WaypointError(Exception):
    pass


class InvalidTaskName(Exception):
    pass


class Observation:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class CameraConfig:
    def __init__(
        self, rgb=True, depth=True, point_cloud=True, mask=True, image_size=(128, 128), render_mode=None
    ):
        self.rgb, self.depth, self.point_cloud, self.mask = rgb, depth, point_cloud, mask
        self.image_size, self.render_mode = image_size, render_mode


class ObservationConfig:
    def __init__(self, joint_forces=True, joint_velocities=True, task_low_dim_state=False, **cameras):
        self.joint_forces, self.joint_velocities = joint_forces, joint_velocities
        self.task_low_dim_state = task_low_dim_state
        for name in CAMERAS:
            setattr(self, f"{name}_camera", cameras.get(f"{name}_camera") or CameraConfig())


class Demo:
    def __init__(self, observations, random_seed, num_reset_attempts):
        self._observations, self.random_seed = observations, random_seed
        self.num_reset_attempts = num_reset_attempts

    def __len__(self):
        return len(self._observations)

    def __getitem__(self, index):
        return self._observations[index]


class EndEffectorPoseViaPlanning:
    def action(self, scene, pose):
        low, high = np.array([-0.3, -0.6, 0.75]), np.array([0.8, 0.6, 1.75])
        if not ((pose[:3] > low) & (pose[:3] < high)).all():
            raise InvalidActionError("A path could not be found because the target is outside of workspace.")
        if np.linalg.norm(pose[:3] - BASE) > REACH:
            raise InvalidActionError("A path could not be found.") from ConfigurationPathError("no path")
        length = np.linalg.norm(pose - scene.tip)
        with np.errstate(invalid="ignore"):  # the path to the present pose, as the real one: 0 / 0
            scene.tip = scene.tip + (pose - scene.tip) * (length / length)
        scene.step()


class EndEffectorPoseViaIK:
    def action(self, scene, pose):
        if np.linalg.norm(pose[:3] - scene.tip[:3]) > 0.2:
            raise InvalidActionError("Could not perform IK via Jacobian.") from IKError("too far")
        scene.tip = pose.copy()
        scene.step()


class Discrete:
    def action(self, scene, openness):
        scene.open = float(openness[0] > 0.5)


class MoveArmThenGripper:
    def __init__(self, arm_action_mode, gripper_action_mode):
        assert isinstance(gripper_action_mode, Discrete)
        self.arm, self.gripper = arm_action_mode, gripper_action_mode

    def action(self, scene, action):
        self.arm.action(scene, action[:7])
        self.gripper.action(scene, action[7:])


class Scene:
    """Where the hand is; `robot.arm.get_tip()` is the way that the real one asks for it."""

    def __init__(self):
        self.tip, self.open, self.steps = START / [1, 1, 1, *[np.linalg.norm(START[3:])] * 4], 1.0, 0
        self.robot = self.arm = self

    def get_tip(self):
        return self

    def get_pose(self):
        return self.tip.copy()

    def step(self):
        self.steps += 1


class ReachTarget:
    colours = np.random.RandomState(0).randint(60, 255, (20, 3))
    floor = -math.inf

    def variation_count(self):
        return len(self.colours)

    def descriptions(self, variation):
        return [f"reach target {variation}", f"touch ball {variation}"]


class BeatTheBuzz(ReachTarget):
    colours = ReachTarget.colours[:1]
    floor = 0.9  # below it the buzzer sounds and the task is lost


def name_to_task_class(name):
    tasks = {"reach_target": ReachTarget, "beat_the_buzz": BeatTheBuzz}
    if name not in tasks:
        raise InvalidTaskName(f"The task file '{name}' does not exist or cannot be compiled.")
    return tasks[name]


class Environment:
    def __init__(self, action_mode, dataset_root="", obs_config=None, headless=False):
        assert headless
        self.action_mode, self.config, self.cameras = action_mode, obs_config, None

    def launch(self):
        if self.cameras is not None:
            raise RuntimeError("Already called launch!")
        os.chdir("/")
        print("CoppeliaSim greets", os.environ.get("QT_QPA_PLATFORM_PLUGIN_PATH"), flush=True)
        os.write(1, b"\xff\xfe and writes past Python\n")
        configs = {name: getattr(self.config, f"{name}_camera") for name in CAMERAS}
        self.cameras = {name for name, config in configs.items() if config.rgb or config.depth}

    def get_task(self, task_class):
        fault("get_task")
        return TaskEnvironment(self, task_class())

    def shutdown(self):
        self.cameras = None


class TaskEnvironment:
    def __init__(self, environment, task):
        self._environment, self._task, self._variation, self._reset_called = environment, task, 0, False
        self._noted = None
        if all(shape["name"] != "ball" for shape in things.living("shape")):
            things.add("shape", "ball", np.eye(4), half=[RADIUS] * 3, colour=None)
        self._shape = things.Shape("ball")
        self._shape.own["task"] = self.get_name()

    def get_name(self):
        return type(self._task).__name__

    def variation_count(self):
        return self._task.variation_count()

    def set_variation(self, variation):
        if variation >= self.variation_count():
            raise TaskEnvironmentError(f"Requested variation {variation}")
        self._variation = variation

    def reset(self, demo=None):
        fault("reset")
        self._scene = Scene()
        # A placement may be out of reach; a demonstration's reset repeats exactly as many of them.
        nowhere = os.environ.get("RLBENCH_DOUBLE") == "nowhere"
        for attempt in range(1, 41):
            self._ball = np.random.uniform([0.1, -0.4, 0.8], [0.6, 0.4, 1.3])
            placed = self._reachable() and not demo and not nowhere
            if attempt == (demo.num_reset_attempts if demo else 0) or placed:
                break
        else:
            raise TaskEnvironmentError("Could not place the task in the scene.")
        self._shape.own["matrix"][:3, 3] = self._ball
        self._noted = 0 if self._noted is None else self._variation  # the real one's first reset does so
        self._attempts, self._reset_called = attempt, True
        return self._task.descriptions(self._variation), self.get_observation()

    def _reachable(self):
        return np.linalg.norm(self._ball - BASE) < REACH and self._ball[2] > self._task.floor + 0.05

    def get_observation(self):
        fault("get_observation")
        config = self._environment.config
        seen = {"gripper_pose": self._scene.tip.copy(), "gripper_open": self._scene.open}
        seen["misc"] = {"variation_index": self._noted}
        seen["task_low_dim_state"] = self._ball.copy() if config.task_low_dim_state else None
        for name in self._environment.cameras:
            camera = getattr(config, f"{name}_camera")
            sensor = things.VisionSensor(SENSORS[name])
            if name == "wrist":  # it rides on the hand
                sensor.set_matrix(looking(self._scene.tip[:3] + np.array([-0.1, 0, 0.2])))
            pose, matrix = sensor.get_matrix(), intrinsics(camera.image_size, sensor.get_perspective_angle())
            seen["misc"] |= {f"{name}_camera_extrinsics": pose, f"{name}_camera_intrinsics": matrix}
            drawn = self._draw(pose, matrix, camera.image_size) if camera.rgb else None
            seen[f"{name}_rgb"] = drawn
        return Observation(**seen)

    def step(self, action):
        if not self._reset_called:
            raise RuntimeError("Call 'reset' before calling 'step' on a task.")
        fault("step")
        assert action.shape == (8,)
        if not np.isclose(np.linalg.norm(action[3:7]), 1.0, atol=1e-8):
            raise InvalidActionError("Action contained non unit quaternion!")
        self._environment.action_mode.action(self._scene, action)
        success = bool(np.linalg.norm(self._scene.tip[:3] - self._ball) < RADIUS)
        return self.get_observation(), float(success), success or bool(self._scene.tip[2] < self._task.floor)

    def get_demos(self, amount, live_demos=False, max_attempts=10):
        assert (amount, live_demos) == (1, True)
        fault("get_demos")
        for attempt in range(max_attempts):
            state = np.random.get_state()
            self.reset()
            print("a live demonstration", flush=True)
            # The last attempt never fails: else one demonstration in a thousand, and its test, would.
            flaky = os.environ.get("RLBENCH_DOUBLE") == "flaky" and attempt < max_attempts - 1
            if not flaky or random.random() < 0.5:
                break
        else:
            raise RuntimeError("Could not collect demos. Maybe a problem with the task?")
        if os.environ.get("RLBENCH_DOUBLE") == "unsolvable":
            raise RuntimeError("Could not collect demos. Maybe a problem with the task?")
        seen = [self.get_observation()]
        for part in np.linspace(0, 1, 25)[1:]:
            self._scene.tip[:3] = START[:3] + part * (self._ball - START[:3])
            self._scene.open = float(part < 0.5)
            seen.append(self.get_observation())
        return [Demo(seen, state, self._attempts)]

    def reset_to_demo(self, demo):
        np.random.set_state(demo.random_seed)
        self.set_variation(demo[0].misc["variation_index"])
        words, seen = self.reset(demo)
        _calls["restored"] = _calls.get("restored", 0) + 1
        other = os.environ.get("RLBENCH_DOUBLE") == "other words" and _calls["restored"] > 1
        return words[::-1] if other else words, seen

    def _draw(self, pose, matrix, size):
        image = np.full((size[1], size[0], 3), 40, np.uint8)
        rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
        discs = []
        for shape in things.living("shape"):
            if "colour" in shape:
                x, y, z = pose[:3, :3].T @ (shape["matrix"][:3, 3] - pose[:3, 3])
                colour = shape["colour"]
                discs.append((z, x, y, shape["half"][0], colour and 255 * np.array(colour)))
        for z, x, y, radius, colour in sorted(discs, key=lambda disc: -disc[0]):
            u, v = matrix[0, 2] + matrix[0, 0] * x / z, matrix[1, 2] + matrix[1, 1] * y / z
            if z > 0:
                disc = np.hypot(columns - u, rows - v) < abs(matrix[0, 0]) * radius / z
                image[disc] = self._task.colours[self._variation] if colour is None else colour
        return np.clip(image * things.level(), 0, 255).astype(np.uint8)


def looking(eye, left=None):
    """The pose of a camera at a place that looks at the table: x left, y up, z forward."""
    forward = np.array([0.35, 0.0, 0.9]) - eye
    forward /= np.linalg.norm(forward)
    left = np.cross([0.0, 0.0, 1.0], forward) if left is None else np.array(left)
    left /= np.linalg.norm(left)
    pose = np.eye(4)
    pose[:3] = np.stack([left, np.cross(forward, left), forward, eye], axis=1)
    return pose


def intrinsics(size, degrees):
    """As PyRep: x and y point left and up, hence negative focal lengths; the angle is the longer side's."""
    angle = float(np.float32(math.radians(degrees)))  # CoppeliaSim's numbers are of single precision
    focal = -max(size) / (2 * math.tan(angle / 2))
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])


register(
    "rlbench",
    {
        "action_modes.action_mode": [MoveArmThenGripper],
        "action_modes.arm_action_modes": [EndEffectorPoseViaIK, EndEffectorPoseViaPlanning],
        "action_modes.gripper_action_modes": [Discrete],
        "backend.exceptions": [InvalidActionError, TaskEnvironmentError],
        "backend.observation": [Observation],
        "backend.scene": [Scene],
        "demo": [Demo],
        "environment": [Environment],
        "observation_config": [CameraConfig, ObservationConfig],
        "task_environment": [TaskEnvironment],
        "utils": [name_to_task_class],
    },
)
for parent in ("action_modes", "backend"):
    sys.modules[f"rlbench.{parent}"] = type(sys)(f"rlbench.{parent}")

things.add(
    "shape", "workspace", [[1, 0, 0, 0.25], [0, 1, 0, 0], [0, 0, 1, 0.752], [0, 0, 0, 1]], half=[0.3, 0.45, 0]
)
for name, pose in {
    "left_shoulder": looking(np.array([-0.3, 0.6, 2.0])),
    "right_shoulder": looking(np.array([-0.3, -0.6, 2.0])),
    "overhead": looking(np.array([0.2, 0.0, 2.5]), left=[0.0, 1.0, 0.0]),
    "wrist": np.eye(4),
    "front": FRONT,
}.items():
    angle = 40.0 if name == "front" else 60.0
    things.add("sensor", SENSORS[name], pose, angle=angle, mode=RenderMode.OPENGL3)
