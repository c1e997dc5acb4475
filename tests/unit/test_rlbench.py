"""The RLBench adapter through its real server process, over an in-repo double of RLBench's names."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from rlbench_twin import DOUBLE, TRIAL, make

from ai_wam.cameras import Cameras
from ai_wam.episodes import Frame
from ai_wam.errors import UserError
from benchmarks.simulator import Simulator, SimulatorCrash, Trial
from benchmarks.simulators.rlbench import simulator as rlbench
from benchmarks.simulators.rlbench.client import EnvironmentServerError
from benchmarks.simulators.rlbench.simulator import RLBench
from benchmarks.simulators.rlbench.task_list import VARIATIONS

IN_SIGHT = 2  # a scene whose ball all five cameras see whole
# From public recordings of RLBench at 128 pixels, as it states them.
GOLDEN_FOCAL = -175.83856040078922
GOLDEN_FRONT = [[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1]]


@pytest.fixture(scope="module")
def simulator(rlbench_simulator):
    return rlbench_simulator


def test_is_a_simulator_whose_copies_carry_settings_only(simulator):
    assert isinstance(simulator, Simulator)
    simulator.reset(TRIAL)
    for twin in (copy.deepcopy(simulator), pickle.loads(pickle.dumps(simulator))):
        assert twin.settings == simulator.settings
        assert not twin._server.running
        with pytest.raises(RuntimeError, match="call reset"):
            twin.pose()


def test_106_tasks_by_their_file_names(simulator):
    assert len(VARIATIONS) == 106
    assert list(VARIATIONS) == sorted(VARIATIONS)
    assert {
        name: VARIATIONS[name] for name in ("reach_target", "close_drawer", "stack_blocks", "wipe_desk")
    } == {
        "reach_target": 20,
        "close_drawer": 3,
        "stack_blocks": 60,
        "wipe_desk": 1,
    }
    with pytest.raises(
        ValueError, match=r"no task 'close_laptop' among its 106; did you mean.*'close_laptop_lid'"
    ):
        simulator.reset(Trial("close_laptop", 0, 0))
    with pytest.raises(ValueError, match=r"variation 20 of task 'reach_target' is unknown: it has 0 to 19"):
        simulator.reset(Trial("reach_target", 20, 0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arm_mode": "joints"}, "arm_mode 'joints' must be one of"),
        ({"control_hz": 8.0}, "control_hz 8.0 must be 20.0 or that divided"),
        ({"control_hz": 0.0}, "control_hz 0.0"),
        ({"image_size": (0, 9)}, "between 1 and 2048"),
        ({"views": ("top",)}, r"views \['top'\] are unknown"),
        ({"attempts": 0}, "attempts 0 must be at least 1"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


@pytest.mark.parametrize("mode", ["planning", "ik"])
def test_replaying_the_demonstration_solves_the_scene(mode):
    simulator = make(arm_mode=mode)
    assert simulator.reset(TRIAL) == ("reach target 3", "touch ball 3")
    assert simulator.diagnostics() == {"ik_failures": 0, "outside_workspace": 0, "scene_change": 0}
    start = simulator.pose()
    assert start[7] == 1
    np.testing.assert_allclose(start[:3], [0.278, -0.008, 1.472])
    results = [simulator.step(action.astype(np.float32)) for action in simulator.demonstrate()]
    assert len(results) == 24
    assert all(result.reached for result in results)
    assert (results[-1].success, results[-1].failed, results[0].success) == (True, False, False)
    assert simulator.pose()[7] == 0
    with pytest.raises(RuntimeError, match="24 steps were made since; call reset"):
        next(simulator.demonstrate())
    simulator.close()


def test_a_trial_is_the_same_in_any_order_and_in_another_process(simulator):
    def scene(world, trial):
        world.reset(trial)
        return np.stack(list(world.demonstrate()))

    first = scene(simulator, TRIAL)
    other = scene(simulator, Trial("reach_target", 3, 6))
    np.testing.assert_array_equal(scene(simulator, TRIAL), first)
    assert np.abs(other - first).max() > 0.01
    fresh = make()
    np.testing.assert_array_equal(scene(fresh, TRIAL), first)
    fresh.close()


def test_a_slower_rate_keeps_the_end(simulator):
    slow = make(control_hz=4.0)
    for world in (simulator, slow):
        world.reset(TRIAL)
    every, kept = list(simulator.demonstrate()), list(slow.demonstrate())
    np.testing.assert_array_equal(kept, [*every[4::5], every[-1]])
    slow.close()


def test_steps_that_no_plan_leads_to_are_distinguished_and_move_nothing(simulator):
    simulator.reset(TRIAL)
    before = simulator.pose()
    outside, unreachable = before.copy(), before.copy()
    outside[0], unreachable[:3] = 3.0, [0.75, 0.55, 1.7]
    for action in (outside, unreachable, unreachable):
        result = simulator.step(action)
        assert (result.reached, result.success, result.failed) == (False, False, False)
    assert simulator.diagnostics() == {"ik_failures": 2, "outside_workspace": 1, "scene_change": 0}
    np.testing.assert_array_equal(simulator.pose(), before)
    assert simulator.observe([]).seconds == pytest.approx(0.15)
    assert make().diagnostics()["ik_failures"] == 0


@pytest.mark.parametrize("mode", ["planning", "ik"])
def test_the_present_pose_moves_the_gripper_alone(mode):
    """RLBench's planner divides by the path's length, which is 0 then."""
    simulator = make(arm_mode=mode)
    simulator.reset(TRIAL)
    before = simulator.pose()
    for openness in (1.0, 0.0, 1.0):
        held = np.append(before[:7], openness).astype(np.float32)
        assert simulator.step(held).reached
        np.testing.assert_allclose(simulator.pose(), held, atol=1e-4)
    turned = np.append(-before[3:7], 1.0)  # the same rotation
    assert simulator.step(np.append(before[:3], turned)).reached
    beside = before + np.eye(8)[0] * 0.01  # beyond the tolerance
    assert simulator.step(beside).reached
    np.testing.assert_allclose(simulator.pose(), beside, atol=1e-6)
    simulator.close()


def test_far_poses_fail_one_jacobian_step():
    simulator = make(arm_mode="ik")
    simulator.reset(TRIAL)
    away = simulator.pose()
    away[2] -= 0.4
    assert not simulator.step(away).reached
    assert simulator.diagnostics()["ik_failures"] == 1
    simulator.close()


def test_a_broken_condition_fails_the_trial(simulator):
    simulator.reset(Trial("beat_the_buzz", 0, 1))
    low = simulator.pose()
    low[2] = 0.8
    result = simulator.step(low)
    assert (result.success, result.failed, result.done) == (False, True, True)


def test_bad_actions_never_reach_the_process(simulator):
    simulator.reset(TRIAL)
    for action, words in (
        (np.zeros(7), "expected"),
        (np.full(8, np.nan), "not finite"),
        (np.zeros(8), "no orient"),
    ):
        with pytest.raises(ValueError, match=words):
            simulator.step(action)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (128, 128)])
def test_all_five_cameras_see_the_ball_where_our_cameras_say_it_is(size):
    simulator = make(image_size=size)
    simulator.reset(Trial("reach_target", 3, IN_SIGHT))
    ball = torch.from_numpy(list(simulator.demonstrate())[-1][:3])
    frame = simulator.observe()
    assert isinstance(frame, Frame)
    assert list(frame.views) == list(rlbench.VIEWS)
    for name, view in frame.views.items():
        assert view.image.shape == (*size, 3)
        assert view.intrinsics[0, 0] > 0
        assert view.intrinsics[1, 1] > 0
        camera = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
        pixel = camera.project(ball[None], size).pixels[0].numpy()
        rows, columns = np.nonzero((view.image != 40).any(axis=-1))
        seen = np.array([columns.mean(), rows.mean()]) + 0.5
        np.testing.assert_allclose(pixel, seen, atol=1.0, err_msg=name)
    # As recorded: red is the first channel.
    np.testing.assert_array_equal(
        view.image[rows[0], columns[0]], np.random.RandomState(0).randint(60, 255, (20, 3))[3]
    )
    simulator.close()


def test_golden_front_camera():
    simulator = make(image_size=(128, 128), views=("front",))
    simulator.reset(TRIAL)
    view = simulator.observe().views["front"]
    k = np.array([[-GOLDEN_FOCAL, 0, 64], [0, -GOLDEN_FOCAL, 64], [0, 0, 1]])
    np.testing.assert_allclose(view.intrinsics, k, rtol=1e-12)
    # x right and y down: RLBench's x is left and its y is up.
    np.testing.assert_allclose(view.world_from_camera, np.array(GOLDEN_FRONT) @ np.diag([-1, -1, 1, 1]))
    simulator.close()


def test_a_recording_of_the_genuine_sources_plays_through(monkeypatch):
    """What they answered, recorded by test_rlbench_genuine.py, becomes frames and actions of ours."""
    monkeypatch.setattr(rlbench, "_ADAPTER", Path(DOUBLE).parent / "recorded_world.py")
    simulator = RLBench(image_size=(128, 128))
    assert simulator.reset(Trial("reach_target", 8, 4))[0] == "reach the magenta target"
    target = list(simulator.demonstrate())[-1][:3]
    results = [simulator.step(action.astype(np.float32)) for action in simulator.demonstrate()]
    assert [result.success for result in results] == [False] * (len(results) - 1) + [True]
    np.testing.assert_allclose(simulator.pose()[:3], target)
    for name, view in simulator.observe().views.items():
        rotation = view.world_from_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
        focal = -GOLDEN_FOCAL if name == "front" else 64 / np.tan(np.pi / 6)
        np.testing.assert_allclose(np.diag(view.intrinsics), [focal, focal, 1], rtol=1e-6)
        camera = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
        seen = camera.project(torch.from_numpy(target[None]), (128, 128))
        assert seen.depth[0] > 0, name
        assert seen.visible[0], name
    simulator.close()


def test_only_what_is_asked_for_is_drawn(simulator):
    simulator.reset(TRIAL)
    assert list(simulator.observe(["wrist"]).views) == ["wrist"]
    assert simulator.observe([]).views == {}
    with pytest.raises(ValueError, match=r"\['top'\] are unknown"):
        simulator.observe(["top"])


def test_positive_focal_lengths_are_refused():
    with pytest.raises(ValueError, match="camera front are not negative"):
        rlbench._view("front", np.zeros((2, 2, 3), np.uint8), np.eye(3), np.eye(4))


def test_prints_and_changed_folders_do_no_harm(tmp_path, monkeypatch):
    (tmp_path / "here").symlink_to(DOUBLE)
    monkeypatch.chdir(tmp_path)
    simulator = make(paths=("here",))
    simulator.reset(TRIAL)
    assert "writes past Python" in simulator._server.log()
    assert simulator.versions()["rlbench"] == "1.2.0"
    simulator.close()


def test_coppeliasims_folder_is_handed_on(monkeypatch):
    monkeypatch.setenv("COPPELIASIM_ROOT", "/opt/sim/")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/mine")
    monkeypatch.setenv("QT_QPA_PLATFORM_PLUGIN_PATH", "/cv2/plugins")
    assert rlbench.environment() == {
        "COPPELIASIM_ROOT": "/opt/sim",
        "LD_LIBRARY_PATH": "/usr/mine:/opt/sim",
        "QT_QPA_PLATFORM_PLUGIN_PATH": "/opt/sim",
    }
    simulator = make()
    simulator.reset(TRIAL)
    assert "CoppeliaSim greets /opt/sim" in simulator._server.log()
    simulator.close()
    monkeypatch.delenv("COPPELIASIM_ROOT")
    assert rlbench.environment() == {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("segfault:step:2", "step: the other side has gone; the process died of SIGSEGV"),
        ("hang:step:2", "step: no answer within 2 s; killed"),
        ("refuse:step:2", "step: step: RuntimeError: The call failed on the V-REP side"),
        ("refuse:reset:2", "reset: no scene of reach_target, variation 3: RuntimeError: The call failed"),
        ("unsolvable", "Could not collect demos"),
        ("nowhere", "reset: no scene of .*TaskEnvironmentError: Could not place the task in the scene"),
        ("unheard:get_task:1", "reset: no scene of .*WaypointError: a waypoint of the task is gone"),
        ("unheard:step:2", "step: step: WaypointError"),
        ("unheard:get_observation:30", "step: step: WaypointError"),
    ],
)
def test_what_goes_wrong_in_the_process_is_a_crash_and_the_next_reset_begins_anew(
    faulty, monkeypatch, fault, words
):
    simulator = faulty(fault, step_timeout=2.0)

    def replay():
        simulator.reset(TRIAL)
        return [simulator.step(action) for action in simulator.demonstrate()]

    with pytest.raises(SimulatorCrash, match=words):
        replay()
    monkeypatch.delenv("RLBENCH_DOUBLE")
    assert replay()[-1].success


def test_a_picture_that_fails_costs_one_trial(faulty):
    simulator = faulty("unheard:get_observation:29")
    simulator.reset(TRIAL)
    with pytest.raises(SimulatorCrash, match="observe: observe: WaypointError"):
        simulator.observe(["front"])


def test_without_rlbench_the_reason_is_given():
    missing = RLBench()
    with pytest.raises(EnvironmentServerError, match=r"No module named .*`ai-wam rlbench-doctor`") as error:
        missing.reset(TRIAL)
    assert "\n" not in str(error.value)


def test_a_scene_that_came_back_with_other_instructions_is_lost(faulty):
    simulator = faulty("other words")
    assert simulator.reset(TRIAL) == ("reach target 3", "touch ball 3")
    with pytest.raises(SimulatorCrash, match=r"the scene came back with .*, it had \['reach target 3'"):
        simulator.reset(TRIAL)


def test_a_command_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("AI_WAM_RLBENCH_PYTHON", "xvfb-run 'python")
    with pytest.raises(UserError, match=r"AI_WAM_RLBENCH_PYTHON is .* which is no command: No closing quo"):
        rlbench.interpreter()
