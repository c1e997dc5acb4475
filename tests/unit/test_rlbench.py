"""The RLBench adapter through its real server process, over an in-repo double of RLBench's names."""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.types import Clip, Frame
from benchmarks import rlbench
from benchmarks.base import Simulator, SimulatorCrash, Trial
from benchmarks.benchmark import Benchmark
from benchmarks.demonstrations import Demonstrations
from benchmarks.policies import Expert, HoldStill
from benchmarks.protocol import EvaluationProtocol
from benchmarks.remote import EnvironmentServer, EnvironmentServerError
from benchmarks.rlbench import RLBench
from benchmarks.rlbench_tasks import VARIATIONS
from tasks.fixed import FixedPolicy

DOUBLE = str(Path(__file__).parents[1] / "doubles" / "rlbench_double")
SIZE = (48, 64)
TRIAL = Trial("reach_target", 3, 5)
IN_SIGHT = 2  # a scene whose ball all five cameras see whole
# From public recordings of RLBench at 128 pixels, as it states them.
GOLDEN_FOCAL = -175.83856040078922
GOLDEN_FRONT = [[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1]]


def make(**arguments):
    return RLBench(**{"image_size": SIZE, "paths": (DOUBLE,), "step_timeout": 20.0} | arguments)


@pytest.fixture(scope="module")
def simulator():
    made = make()
    yield made
    made.close()


@pytest.fixture
def faulty(monkeypatch):
    """Simulators whose process goes wrong at a certain call."""
    made = []

    def fault(fault, **arguments):
        monkeypatch.setenv("RLBENCH_DOUBLE", fault)
        made.append(make(**arguments))
        return made[-1]

    yield fault
    for simulator in made:
        simulator.close()


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


def test_steps_that_no_plan_leads_to_are_told_apart_and_move_nothing(simulator):
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


def test_an_error_nobody_listed_costs_one_trial_and_not_the_run(faulty):
    rules = EvaluationProtocol(max_seconds=0.2, trials_per_task=3, tasks=("reach_target",))
    made = Benchmark(faulty("unheard:step:6"), rules, parallel=1)
    results = made.run(HoldStill(), made.trials(), Clip(size=SIZE))
    assert [run.stop_reason for run in results] == ["timeout", "crash", "timeout"]
    assert "WaypointError: a waypoint of the task is gone" in results[1].error
    made.close()


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


def test_every_arm_of_a_trial_plays_one_scene_though_live_demonstrations_are_chance(faulty):
    """What makes a demonstration fail lies outside numpy's generator, as CoppeliaSim does."""
    rules = EvaluationProtocol(max_seconds=1.4, trials_per_task=8, tasks=("reach_target",))
    made = Benchmark(faulty("flaky"), rules, parallel=2)
    trials, clip = made.trials(), Clip(size=SIZE)
    own = made.explain(made.run(HoldStill(), trials, clip))
    ceiling, floor = made.ceiling(trials, clip), made.floor(trials[::-1], clip)[::-1]
    assert all(run.stop_reason in ("success", "timeout") for run in ceiling)  # the codec may miss, few pixels
    assert [run.stop_reason for run in own] == ["timeout"] * 8
    assert all(run.failure["expert_mm"] > 0 for run in own)
    assert [run.scene for run in own] == [run.scene for run in ceiling] == [run.scene for run in floor]
    assert len({run.scene for run in own}) == 8
    made.close()


def test_an_expert_with_a_world_of_its_own_is_not_used_for_what_a_benchmark_plays(faulty):
    rules = EvaluationProtocol(max_seconds=1.4, trials_per_task=6, tasks=("reach_target",))
    made = Benchmark(faulty("flaky"), rules, parallel=1)
    expert = Expert(made.simulator)
    results = made.run(FixedPolicy(expert), made.trials(), Clip(size=SIZE))
    assert [run.stop_reason for run in results] == ["success"] * 6
    assert expert._own is None
    made.close()


def test_a_trial_costs_one_live_demonstration_in_all_its_arms():
    rules = EvaluationProtocol(max_seconds=1.4, trials_per_task=3, tasks=("reach_target",))
    made = Benchmark(make(), rules, parallel=1)
    trials, clip = made.trials(), Clip(size=SIZE)
    made.explain(made.run(HoldStill(), trials, clip))
    made.ceiling(trials, clip)
    made.floor(trials, clip)
    (world,) = made._worlds
    assert world._server.log().count("a live demonstration") == 3
    made.close()


def test_a_scene_that_came_back_otherwise_is_no_scene_of_its_demonstration(simulator, monkeypatch):
    reply = simulator._server.call
    for change, same in ((0.02, True), (0.021, False), (math.nan, False)):
        monkeypatch.setattr(
            simulator._server, "call", lambda *a, change=change, **k: {**reply(*a, **k), "change": change}
        )
        simulator.reset(TRIAL)
        assert simulator.scene().startswith("changed") != same
        monkeypatch.undo()
    monkeypatch.setattr(simulator._server, "call", lambda *a, **k: {**reply(*a, **k), "change": 1.0})
    simulator.reset(TRIAL)
    monkeypatch.setattr(RLBench, "demonstrate", lambda self: iter(()))
    with pytest.raises(SimulatorCrash, match="came back as changed"):
        Expert(simulator).solve(simulator, TRIAL)


def test_a_trial_whose_scene_came_back_otherwise_is_lost_to_policy_and_floor(monkeypatch):
    rules = EvaluationProtocol(max_seconds=0.2, trials_per_task=2, tasks=("reach_target",))
    made = Benchmark(make(), rules, parallel=1)
    trials, clip, call = made.trials(), Clip(size=SIZE), EnvironmentServer.call
    changed = {(trials[1].variation, trials[1].seed)}

    def answer(server, name, timeout, **arguments):
        reply = call(server, name, timeout, **arguments)
        here = (arguments.get("variation"), arguments.get("seed")) in changed
        return {**reply, "change": 1.0} if name == "reset" and here else reply

    monkeypatch.setattr(EnvironmentServer, "call", answer)
    for results in (made.run(HoldStill(), trials, clip), made.floor(trials, clip)):
        assert [run.stop_reason for run in results] == ["timeout", "crash"]
        assert "did not bring the trial's scene back: it is changed" in results[1].error
    made.close()


def test_a_scene_that_came_back_with_other_instructions_is_lost(faulty):
    simulator = faulty("other words")
    assert simulator.reset(TRIAL) == ("reach target 3", "touch ball 3")
    with pytest.raises(SimulatorCrash, match=r"the scene came back with .*, it had \['reach target 3'"):
        simulator.reset(TRIAL)


def test_a_benchmark_loses_one_trial_to_a_crash(faulty):
    simulator = faulty("segfault:step:6")
    rules = EvaluationProtocol(max_seconds=0.2, trials_per_task=3, tasks=("reach_target",))
    made = Benchmark(simulator, rules, parallel=1)
    clip = Clip(size=SIZE, views=("front", "wrist"))
    results = made.run(HoldStill(), made.trials(), clip)
    assert [run.stop_reason for run in results] == ["timeout", "crash", "timeout"]
    assert "SIGSEGV" in results[1].error
    made.close()


def test_the_expert_solves_the_benchmark():
    rules = EvaluationProtocol(max_seconds=1.4, trials_per_task=2, tasks=("reach_target",))
    made = Benchmark(make(), rules, parallel=2)
    expert = Expert(made.simulator, stride=4)
    results = made.run(expert, made.trials(), Clip(size=SIZE))
    assert [run.stop_reason for run in results] == ["success"] * 2
    assert all(run.diagnostics["scene_change"] == 0 for run in results)
    expert.close()
    made.close()


def test_its_demonstrations_are_episodes():
    source = Demonstrations(
        make(), ["reach_target"], episodes_per_task=2, record_hz=5.0, views=["front", "wrist"]
    )
    episode = source[1]
    assert episode.instructions == ("reach target 1", "touch ball 1")
    # The start, 24 steps and 16 of the hold, every fourth of them.
    assert len(episode.frames) == 11
    assert list(episode.frames[0].views) == ["front", "wrist"]
    assert episode.provenance["arm_mode"] == "planning"
    np.testing.assert_allclose(episode.frames[-1].action[7], 0)
    source.simulator.close()
