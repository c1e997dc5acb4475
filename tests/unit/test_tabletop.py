"""The tabletop simulator: scenes, actions, determinism, graphics."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.simulator import Simulator, Trial
from benchmarks.simulators import opengl_platform as platform
from benchmarks.simulators.mujoco_graphics import Pictures, mujoco
from benchmarks.simulators.tabletop import panda
from benchmarks.simulators.tabletop.camera_rigs import WORKSPACES
from benchmarks.simulators.tabletop.kinematics import Kinematics, Pose
from benchmarks.simulators.tabletop.simulator import Tabletop

REACH = Trial("reach_target", 0, 0)
HOME_TIP = np.array([0.2819, 0.0, 1.4533, 0.0, 0.9962, 0.0, 0.0871, 1.0])


@pytest.fixture(scope="module")
def simulator():
    simulator = Tabletop(rig="framed", image_size=(32, 48), views=("front",))
    yield simulator
    simulator.close()


def rollout(simulator, trial, steps=8):
    """Instructions, poses and last picture of an expert's first steps."""
    instructions = simulator.reset(trial)
    poses = [simulator.pose()]
    for _, action in zip(range(steps), simulator.demonstrate(), strict=False):
        simulator.step(action)
        poses.append(simulator.pose())
    return instructions, np.stack(poses), simulator.observe().views["front"].image


def test_is_a_simulator_with_the_four_tasks(simulator):
    assert isinstance(simulator, Simulator)
    assert simulator.tasks() == {
        "close_drawer": 3,
        "close_laptop_lid": 2,
        "pick_up_cup": 6,
        "reach_target": 6,
    }


def test_starts_at_rlbench_home_pose(simulator):
    simulator.reset(REACH)
    np.testing.assert_allclose(simulator.pose(), HOME_TIP, atol=2e-4)
    frame = simulator.observe(["left_shoulder"])
    assert list(frame.views) == ["left_shoulder"]
    assert frame.views["left_shoulder"].image.shape == (32, 48, 3)
    assert frame.seconds == 0.0


def test_observe_draws_only_what_is_asked(simulator):
    simulator.reset(REACH)
    assert not simulator.observe([]).views
    assert list(simulator.observe().views) == ["front"]
    with pytest.raises(ValueError, match=r"'top'.*front"):
        simulator.observe(["top"])


def test_trial_depends_on_its_seed_alone(simulator):
    first = rollout(simulator, REACH)
    for index in range(1, 4):
        rollout(simulator, Trial("reach_target", index, index), steps=5)
    again = rollout(simulator, REACH)
    fresh_simulator = Tabletop(rig="framed", image_size=(32, 48), views=("front",))
    fresh = rollout(fresh_simulator, REACH)
    fresh_simulator.close()
    for other in (again, fresh):
        assert first[0] == other[0]
        np.testing.assert_array_equal(first[1], other[1])
        np.testing.assert_array_equal(first[2], other[2])
    assert not np.array_equal(first[2], rollout(simulator, Trial("reach_target", 0, 1))[2])


def test_random_start_changes_the_start_and_not_the_scene():
    home, anywhere = Tabletop(rig="framed"), Tabletop(rig="framed", randomise_start=1.0)
    box = WORKSPACES["framed"]
    for index in range(10):
        trial = Trial("reach_target", 2, index)
        goals = []
        for simulator in (home, anywhere):
            simulator.reset(trial)
            goals.append(list(simulator.demonstrate())[-1][:3])
        np.testing.assert_array_equal(goals[0], goals[1])
        start = anywhere.pose()[:3]
        assert (start >= np.array(box.low) - 0.005).all()
        assert (start <= np.array(box.high) + 0.005).all()
        assert np.linalg.norm(start - goals[0]) > 0.11
        assert anywhere.diagnostics()["any_sphere"] == 0.0


def test_half_of_the_starts_are_random():
    simulator = Tabletop(randomise_start=0.5)
    at_home = []
    for index in range(60):
        simulator.reset(Trial("reach_target", 0, index))
        at_home.append(np.allclose(simulator.pose(), HOME_TIP, atol=1e-3))
    assert 18 <= sum(at_home) <= 42  # 3 standard deviations


def test_follows_the_commanded_pose(simulator):
    simulator.reset(REACH)
    errors = []
    for action in simulator.demonstrate():
        assert simulator.step(action).reached
        errors.append(np.linalg.norm(simulator.pose()[:3] - action[:3]))
    assert np.median(errors) < 0.004
    assert errors[-1] < 0.001


def test_unreachable_pose_is_told_and_leaves_the_arm(simulator):
    simulator.reset(REACH)
    before = simulator.pose()
    far = before.copy()
    far[0] += 3.0
    result = simulator.step(far)
    assert not result.reached
    assert not result.done
    np.testing.assert_allclose(simulator.pose(), before, atol=1e-3)


def test_distant_pose_takes_several_steps_at_joint_speed_limits(simulator):
    simulator.reset(REACH)
    goal = simulator.pose()
    goal[:3] = (0.35, 0.2, 0.9)
    distances = []
    for _ in range(30):
        assert simulator.step(goal).reached
        distances.append(np.linalg.norm(simulator.pose()[:3] - goal[:3]))
    assert distances[0] > 0.4
    assert distances[-1] < 0.002


def test_gripper_opens_and_closes(simulator):
    simulator.reset(REACH)
    action = simulator.pose()
    action[7] = 0.25
    simulator.step(action)
    assert simulator.pose()[7] == 0.25
    action[7] = 7.0
    simulator.step(action)
    assert simulator.pose()[7] == 1.0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(7), r"shape \(7,\), expected \(8,\)"),
        (np.full(8, np.nan), "not finite"),
        (np.array([0.3, 0, 1, 0, 0, 0, 0, 1.0]), "no orientation"),
    ],
)
def test_bad_action_is_refused(simulator, action, message):
    simulator.reset(REACH)
    with pytest.raises(ValueError, match=message):
        simulator.step(action)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rig": "narrow"}, "'narrow'.*wide.*framed"),
        ({"workspace": "huge"}, "'huge'.*wide.*framed"),
        ({"image_size": (0, 64)}, "between 1 and 2048"),
        ({"views": ("front", "back")}, "'back'.*overhead"),
        ({"randomise_start": 1.5}, "1.5 must lie between 0 and 1"),
        ({"control_hz": 0.0}, "between 1 and 100"),
    ],
)
def test_bad_setting_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tabletop(**arguments)


def test_unknown_trials_are_refused_with_the_known_ones(simulator):
    with pytest.raises(ValueError, match=r"'juggle'.*reach_target"):
        simulator.reset(Trial("juggle", 0, 0))
    with pytest.raises(ValueError, match=r"variation 6.*0 to 5"):
        simulator.reset(Trial("reach_target", 6, 0))
    with pytest.raises(RuntimeError, match="reset"):
        Tabletop().pose()


def test_pickles_as_its_settings(simulator):
    simulator.reset(REACH)
    copy = pickle.loads(pickle.dumps(simulator))
    assert copy.settings == simulator.settings
    np.testing.assert_array_equal(rollout(copy, REACH)[1], rollout(simulator, REACH)[1])
    copy.close()


def test_works_again_after_close():
    simulator = Tabletop(image_size=(16, 16), views=("wrist",))
    simulator.close()
    for _ in range(2):
        simulator.reset(REACH)
        assert simulator.observe().views["wrist"].image.std() > 0
        simulator.close()


def test_kinematics_solves_poses_of_random_joints():
    kinematics = Kinematics()
    rng = np.random.default_rng(0)
    for _ in range(20):
        joints = panda.HOME + rng.uniform(-0.5, 0.5, 7)
        pose = kinematics.pose(joints)
        solution = kinematics.solve(pose, panda.HOME)
        found = kinematics.pose(solution.joints)
        assert solution.reached
        np.testing.assert_allclose(found.position, pose.position, atol=2e-4)
        np.testing.assert_allclose(np.abs(found.quaternion @ pose.quaternion), 1, atol=1e-6)


@pytest.mark.parametrize("name", list(WORKSPACES))
def test_whole_workspace_is_within_reach(name):
    kinematics, box = Kinematics(), WORKSPACES[name]
    home = kinematics.pose(panda.HOME)
    axes = [np.linspace(low, high, 4) for low, high in zip(box.low, box.high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)
    unreachable = [p for p in grid if not kinematics.solve(Pose(p, home.quaternion), panda.HOME).reached]
    assert not unreachable


def test_platform_choice():
    assert platform.choose_platform(egl_devices=1, osmesa=True) == "egl"
    assert platform.choose_platform(egl_devices=0, osmesa=True) == "osmesa"
    assert platform.choose_platform(egl_devices=0, osmesa=False) == "disable"
    assert platform.loads_any(("libnothere.so", "libc.so.6"))
    assert not platform.loads_any(("libnothere.so",))


@pytest.mark.parametrize(
    ("variables", "devices", "library", "why", "way"),
    [
        ({"MUJOCO_GL": "osmesa"}, 1, False, "libOSMesa) cannot be loaded", "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "egl"}, 0, True, "EGL offers no device", "set MUJOCO_GL=osmesa"),
        ({"MUJOCO_GL": "disable"}, 1, True, "turns graphics off", "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "nonsense"}, 1, True, "does not know", "set MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "wgl"}, 1, True, "does not know", "set MUJOCO_GL=egl"),  # of Windows
        ({"MUJOCO_EGL_DEVICE_ID": "x"}, 1, True, "is 'x', expected", "unset MUJOCO_EGL_DEVICE_ID"),
        ({"PYOPENGL_PLATFORM": "glx"}, 1, True, "PYOPENGL_PLATFORM is 'glx'", "unset PYOPENGL_PLATFORM"),
        (
            {"PYOPENGL_PLATFORM": "egl", "MUJOCO_GL": "osmesa"}, 0, True,
            "PYOPENGL_PLATFORM is 'egl' and MuJoCo draws with osmesa", "unset PYOPENGL_PLATFORM",
        ),
        ({}, 0, False, "there is no display", "install EGL or OSMesa"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_of_graphics(variables, devices, library, why, way):
    """And the advice leaves nothing in the way."""
    assert why in platform.obstacle(variables, devices, library)
    advice = platform.way_out(variables, devices, library)
    assert advice.startswith(way)
    after = {name: value for name, value in variables.items() if f"unset {name}" not in advice}
    after |= dict(
        step.removeprefix("set ").split("=") for step in advice.split(" and ") if step.startswith("set ")
    )
    if devices or library:
        assert platform.obstacle(after, devices, library) is None


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"MUJOCO_GL": "nonsense"}, "MUJOCO_GL is 'nonsense', which MuJoCo does not know"),
        ({"DISPLAY": ":77"}, "MUJOCO_GL unset, DISPLAY :77"),
    ],
)
def test_a_wrong_choice_of_graphics_is_one_sentence(tmp_path, variables, why):
    words = ["collect", "--config=configs/collect/reach_target.yaml", f"--out={tmp_path}", "--workers=0"]
    done = run_headless(f"from ai_wam.cli import main\nmain({words})", **variables)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ai-wam collect: MuJoCo cannot draw: ")
    assert why in said
    assert "Traceback" not in done.stderr


def run_headless(code, **variables):
    """A fresh interpreter without a display or a choice of graphics, but for these variables."""
    hidden = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_mujoco_imported_too_early_is_told():
    done = run_headless(
        "import mujoco\n"
        "from benchmarks.simulators.mujoco_graphics import Pictures\n"
        "Pictures(mujoco.MjModel.from_xml_string('<mujoco/>'), (8, 8), False)\n"
    )
    assert "CannotContinue: MuJoCo cannot draw: " in done.stderr
    assert "with MUJOCO_GL unset" in done.stderr
    assert "import benchmarks.simulators.mujoco_graphics before mujoco" in done.stderr


def test_libraries_of_mujoco_that_do_not_load_are_one_sentence(tmp_path):
    (tmp_path / "mujoco.py").write_text("raise OSError('libmujoco.so.4.0.0: cannot open')")
    done = run_headless("import benchmarks.simulators.mujoco_graphics", PYTHONPATH=str(tmp_path))
    said = done.stderr.strip().splitlines()[-1]
    assert "CannotContinue: MuJoCo's libraries do not load: libmujoco.so.4.0.0: cannot open" in said
    assert "pip uninstall -y mujoco mujoco-core mujoco-studio" in said


@pytest.mark.parametrize("shadows", [False, True])
def test_pictures_that_share_a_context_are_those_of_the_genuine_renderer(shadows):
    drawn = []
    for task in ("reach_target", "close_drawer"):
        simulator = Tabletop(image_size=(32, 48), shadows=shadows)
        simulator.reset(Trial(task, 0, 0))
        (world, _) = simulator._current()
        genuine = mujoco.Renderer(world.model, 32, 48)
        genuine.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        genuine.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        drawn.append((world, Pictures(world.model, (32, 48), shadows), genuine))
    for world, pictures, genuine in drawn * 2:
        for camera in range(world.model.ncam):
            genuine.update_scene(world.data, camera)
            assert np.array_equal(pictures.draw(world.data, camera), genuine.render())
    for world, pictures, genuine in drawn:
        genuine.close()
        pictures.close()
        with pytest.raises(RuntimeError, match="were closed"):
            pictures.draw(world.data, 0)


def test_draws_headless_and_exits_quietly():
    done = run_headless(
        "from benchmarks.simulator import Trial\n"
        "from benchmarks.simulators.tabletop.simulator import Tabletop\n"
        "simulator = Tabletop(image_size=(16, 16))\n"
        "simulator.reset(Trial('reach_target', 0, 0))\n"
        "print(simulator.observe(['front']).views['front'].image.shape)\n"
        "from importlib.util import find_spec\n"
        "find_spec('triton') and __import__('triton._C.libtriton')\n"  # as torch does; too late after Mesa
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(16, 16, 3)"
    assert done.stderr == ""
