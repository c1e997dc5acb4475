"""The adapter over the genuine Python sources of RLBench and PyRep; only CoppeliaSim's C calls are a fake.

    AI_WAM_RLBENCH_SOURCES=/with/RLBench/and/PyRep AI_WAM_RLBENCH_PYTHON=/venv/bin/python pytest -m rlbench

The interpreter needs cffi and what RLBench imports, but neither CoppeliaSim nor a build of PyRep.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.types import Clip
from benchmarks.demonstrations import Demonstrations
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import HoldStill
from benchmarks.shifts import Shift, ShiftedSimulator, parts
from benchmarks.simulator import SimulatorCrash, Trial
from benchmarks.simulators import camera_moves, mujoco_changes
from benchmarks.simulators.camera_moves import framed_points
from benchmarks.simulators.rlbench import simulator as rlbench
from benchmarks.simulators.rlbench.simulator import RLBench
from benchmarks.simulators.rlbench.task_list import VARIATIONS
from benchmarks.simulators.tabletop import camera_rigs
from benchmarks.simulators.tabletop.simulator import Tabletop

SOURCES = os.environ.get("AI_WAM_RLBENCH_SOURCES")
PATHS = (str(Path(__file__).parents[1] / "doubles" / "genuine"), f"{SOURCES}/RLBench")
TRIAL = Trial("reach_target", 8, 4)  # variation 8 is magenta
MAGENTA = (255, 0, 255)
RECORDING = Path(__file__).parents[1] / "fixtures" / "rlbench_reach_target.json"

pytestmark = [
    pytest.mark.rlbench,
    pytest.mark.skipif(SOURCES is None, reason="AI_WAM_RLBENCH_SOURCES names no folder"),
]


@pytest.fixture(autouse=True)
def coppeliasim(tmp_path, monkeypatch):
    monkeypatch.setenv("COPPELIASIM_ROOT", str(tmp_path))


def make(**arguments):
    return RLBench(**{"image_size": (64, 96), "paths": PATHS, "control_hz": 4.0} | arguments)


@pytest.fixture
def simulator(coppeliasim):
    made = make()
    yield made
    made.close()


def test_all_106_tasks_and_their_variations():
    script = f"""
import sys
sys.path[:0] = {PATHS}
import json, rlbench
from rlbench.utils import name_to_task_class
names = [file[:-3] for file in rlbench.TASKS]
print(json.dumps({{name: int(name_to_task_class(name)(None, None).variation_count()) for name in names}}))
"""
    run = subprocess.run(
        [*rlbench.interpreter(), "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == VARIATIONS


@pytest.mark.parametrize("mode", ["planning", "ik"])
def test_replaying_a_live_demonstration_earns_the_reward(mode):
    simulator = make(arm_mode=mode)
    instructions = simulator.reset(TRIAL)
    assert instructions[0] == "reach the magenta target"
    start = simulator.pose()
    np.testing.assert_allclose(start[:3], [0.28, 0.0, 1.46], atol=0.02)  # where RLBench starts
    results = [simulator.step(action.astype(np.float32)) for action in simulator.demonstrate()]
    assert len(results) > 5
    assert all(result.reached for result in results)
    assert (results[-1].success, results[0].success) == (True, False)
    assert simulator.diagnostics() == {"ik_failures": 0, "outside_workspace": 0, "scene_change": 0}
    simulator.close()


def test_the_same_scene_in_any_order_and_in_another_process(simulator):
    def scene(world, trial):
        world.reset(trial)
        return np.stack(list(world.demonstrate())), world.observe(["front"]).views["front"].image

    first = scene(simulator, TRIAL)
    other = scene(simulator, Trial("reach_target", 0, 4))
    again = scene(simulator, TRIAL)
    fresh = make()
    elsewhere = scene(fresh, TRIAL)
    fresh.close()
    for actions, image in (again, elsewhere):
        np.testing.assert_array_equal(actions, first[0])
        np.testing.assert_array_equal(image, first[1])
    assert np.abs(other[0][-1] - first[0][-1]).max() > 0.01


def test_every_way_an_action_can_fail(simulator):
    simulator.reset(TRIAL)
    before = simulator.pose()
    outside, unreachable = before.copy(), before.copy()
    outside[2] = 0.6
    unreachable[:3] = [0.6, 0.6, 1.7]
    for action in (outside, unreachable):
        result = simulator.step(action)
        assert (result.reached, result.done) == (False, False)
        np.testing.assert_allclose(simulator.pose(), before, atol=1e-6)
    assert simulator.diagnostics()["outside_workspace"] == 1
    assert simulator.diagnostics()["ik_failures"] == 1


def test_far_poses_fail_one_jacobian_step():
    simulator = make(arm_mode="ik")
    simulator.reset(TRIAL)
    far = simulator.pose()
    far[:3] = [0.2, 0.3, 0.9]
    far[3:7] = [0.7, 0.7, 0.1, 0.0]
    assert not simulator.step(far).reached
    assert simulator.diagnostics()["ik_failures"] == 1
    simulator.close()


def test_the_gripper_closes_and_opens(simulator):
    simulator.reset(TRIAL)
    for openness in (0.2, 0.8):
        action = simulator.pose()
        action[2] -= 0.02
        action[7] = openness
        assert simulator.step(action).reached
        assert simulator.pose()[7] == round(openness)


def test_the_present_pose_is_held_and_the_gripper_closes_there(simulator):
    simulator.reset(TRIAL)
    before = simulator.pose()
    for openness in (1.0, 0.0, 0.0, 1.0):
        assert simulator.step(np.append(before[:7], openness).astype(np.float32)).reached
        np.testing.assert_allclose(simulator.pose(), np.append(before[:7], openness), atol=1e-4)


def test_the_floor_and_the_default_demonstrations_lose_no_trial(simulator):
    rules = EvaluationProtocol(max_seconds=1.0, trials_per_task=1, tasks=("reach_target",))
    made = Benchmark(simulator, rules, parallel=1)
    results = made.run(HoldStill(), made.trials(), Clip(size=(64, 96), control_hz=4.0, views=("front",)))
    assert [run.stop_reason for run in results] == ["timeout"]
    made.close()


@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_cameras_see_the_target_where_ours_say_it_is(size):
    simulator = make(image_size=size)
    simulator.reset(TRIAL)
    target = torch.from_numpy(list(simulator.demonstrate())[-1][None, :3])
    for name, view in simulator.observe(rlbench.VIEWS[:4]).views.items():
        assert view.image.shape == (*size, 3)
        camera = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
        pixel = camera.project(target, size).pixels[0].numpy()
        rows, columns = np.nonzero((view.image == MAGENTA).all(axis=-1))
        np.testing.assert_allclose(pixel, [columns.mean() + 0.5, rows.mean() + 0.5], atol=1.5, err_msg=name)
    simulator.close()


def test_golden_front_camera():
    simulator = make(image_size=(128, 128))
    simulator.reset(TRIAL)
    view = simulator.observe(["front"]).views["front"]
    np.testing.assert_allclose(
        np.diag(view.intrinsics), [175.83856040078922, 175.83856040078922, 1], rtol=1e-9
    )
    np.testing.assert_allclose(view.world_from_camera[:3, 2], [-0.90631, 0, -0.42262], atol=1e-5)
    np.testing.assert_allclose(view.world_from_camera[:3, 3], [1.35, 0, 1.58], atol=1e-5)
    np.testing.assert_allclose(view.world_from_camera[:3, 0], [0, 1, 0], atol=1e-5)
    simulator.close()


def test_a_scene_that_rlbench_cannot_load_is_a_crash_and_the_next_one_begins_anew(simulator):
    with pytest.raises(SimulatorCrash, match="no scene of close_drawer, variation 0"):
        simulator.reset(Trial("close_drawer", 0, 0))
    assert simulator.reset(TRIAL)[0] == "reach the magenta target"


def test_episodes(simulator):
    source = Demonstrations(simulator, ["reach_target"], 1, record_hz=4.0, views=["front"])
    episode = source[0]
    assert episode.instructions[0] == "reach the red target"
    assert len(episode.frames) > 5
    assert np.linalg.norm(episode.frames[-1].action[:3] - episode.frames[0].action[:3]) > 0.05


def ours(view):
    return Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))


@pytest.mark.parametrize("framed", [True, False])
def test_a_moved_camera_sees_what_mujocos_moved_camera_sees(framed):
    """The same values drawn for the same front camera about the same workspace, in both simulators."""
    size = (96, 96)
    part = parts.CameraShift((20, 60), (-5, 5), (0.8, 1.3), (0.9, 1.1), (-20, 20), framed, views=("front",))
    own, tabletop = make(image_size=size), Tabletop("wide", image_size=size)
    simulator, mounts = ShiftedSimulator(own, Shift(cameras=part)), {"front": camera_rigs._FRONT}
    for index in range(3):
        simulator.reset(Trial("reach_target", 8, index))
        view, region = own.observe(["front"]).views["front"], own._usual_rig().region
        target = torch.from_numpy(list(own.demonstrate())[-1][None, :3])
        tabletop.reset(Trial("reach_target", 0, 0))
        world, _ = tabletop._current()
        moved = camera_moves.all_moved(mounts, simulator.drawn["cameras"], region)
        mujoco_changes.put_camera(world.model, "front", moved["front"])
        mujoco_changes.mujoco.mj_forward(world.model, world.data)
        tabletop._calibrations.clear()
        twin = tabletop.observe(["front"]).views["front"]
        points = torch.cat([torch.from_numpy(framed_points(region)), target])
        pixels, wanted = (ours(one).project(points, size).pixels.numpy() for one in (view, twin))
        np.testing.assert_allclose(pixels, wanted, atol=0.01)
        rows, columns = np.nonzero((view.image == MAGENTA).all(axis=-1))
        np.testing.assert_allclose(pixels[-1], [columns.mean() + 0.5, rows.mean() + 0.5], atol=1.5)
    own.close()
    tabletop.close()


def everything(lamps=(1, 1), count=(5, 5)):
    return Shift(
        cameras=parts.CameraShift((20, 45), distance=(0.9, 1.1), views=rlbench.VIEWS[:3]),
        light=parts.LightShift(lamps, (50, 60), (0.5, 0.6), (0.2, 0.4), shadows=False),
        distractors=parts.DistractorShift(count),
    )


def test_a_shifted_scene_is_solved_again_and_the_usual_one_comes_back(simulator):
    def look():
        seen = simulator.observe(rlbench.VIEWS[:4]).views
        return simulator.scene(), np.stack(list(simulator.demonstrate())), seen

    simulator.reset(TRIAL)
    scene, actions, usual = look()
    shifted = ShiftedSimulator(simulator, everything())
    for _ in range(2):  # demonstrated in the usual scene, and kept; then restored again
        shifted.reset(TRIAL)
        other, same, seen = look()
        assert other != scene
        assert simulator.diagnostics()["scene_change"] == 0
        np.testing.assert_array_equal(same, actions)
        assert seen["overhead"].image.mean() < 0.8 * usual["overhead"].image.mean()
    moved = shifted.drawn["cameras"]["views"]
    assert [np.allclose(seen[name].world_from_camera, usual[name].world_from_camera) for name in seen] == [
        name not in moved for name in seen
    ]
    assert [shifted.step(action) for action in simulator.demonstrate()][-1].success
    simulator.reset(TRIAL)
    again, same, seen = look()
    assert again == scene
    for name, view in seen.items():
        np.testing.assert_array_equal(view.image, usual[name].image)
        np.testing.assert_allclose(view.world_from_camera, usual[name].world_from_camera, atol=1e-5)
        np.testing.assert_array_equal(view.intrinsics, usual[name].intrinsics)


def test_a_trial_that_is_demonstrated_in_its_shifted_scene_has_the_same_demonstration(simulator):
    fresh = make()
    shifted = ShiftedSimulator(fresh, everything())
    shifted.reset(TRIAL)
    simulator.reset(TRIAL)
    np.testing.assert_array_equal(list(fresh.demonstrate()), list(simulator.demonstrate()))
    ShiftedSimulator(simulator, everything()).reset(TRIAL)
    assert simulator.scene() == fresh.scene()
    fresh.close()


def test_what_pyrep_is_asked_for():
    """The scene of an adapter in a process of the test's own, looked at through the genuine PyRep."""
    inspector = str(Path(PATHS[0]) / "shifted_scene_inspector.py")
    words = [*rlbench.interpreter(), "-I", inspector, str(Path(rlbench._ADAPTER).parent), *PATHS]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    facts = json.loads(run.stdout.splitlines()[-1])
    before, during, after = facts["before"], facts["during"], facts["after"]
    new = sorted(set(during["shapes"]) - set(before["shapes"]))
    assert new == [f"ai_wam_distractor{index}" for index in range(6)]
    assert facts["options"] == [16] * 6  # static, and not respondable
    assert facts["touched"] == [False] * 6
    assert facts["drawn"] == [True] * 6
    assert facts["apart"] > 0.08
    assert facts["parents"] == [None] * 6
    np.testing.assert_allclose(facts["bottoms"], 0.752, atol=1e-6)
    assert (facts["same_state"], facts["change"]) == (True, 0)
    assert facts["colours"] > 0.25
    np.testing.assert_allclose(during["lamps"][0][1:4], 0.75 * np.array([0.5, 0.75, 1.0]))
    np.testing.assert_allclose(during["lamps"][0][4:7], 0.5 * np.array([0.5, 0.75, 1.0]))
    np.testing.assert_allclose(during["ambient"], 0.25 * np.array([0.5, 0.75, 1.0]))
    assert during["lamps"][1][:7] == before["lamps"][1][:7]  # it is off
    assert during["lamps"][2][:7] == before["lamps"][2][:7]  # it is the task's
    assert during["lamps"][3][:7] == [1, 0, 0, 0, 0.25, 0.375, 0.5]
    assert (during["cameras"][0][3], before["cameras"][0][3]) == pytest.approx((1.6, 1.35))
    assert [during["cameras"][0][16], before["cameras"][0][16]] == pytest.approx([50, 40])
    assert {camera[17] for camera in during["cameras"]} != {camera[17] for camera in before["cameras"]}
    assert "CoppeliaSim did not take the angle of camera front: asked for 50" in facts["refused"][0]
    assert "no free place for distractor" in facts["refused"][1]
    assert after["shapes"] == before["shapes"]
    for key in ("lamps", "ambient", "cameras"):
        np.testing.assert_allclose(after[key], before[key], atol=1e-5)


def test_the_committed_recording_is_what_these_sources_answer():
    """AI_WAM_RECORD=1 writes it anew."""
    simulator = make(image_size=(128, 128), control_hz=20.0)
    simulator.reset(TRIAL)
    call = {"task": TRIAL.task, "variation": TRIAL.variation, "seed": TRIAL.seed}
    reply = simulator._server.call("reset", 60.0, **call, attempts=10)
    seen = simulator._server.call("observe", 60.0, cameras=rlbench.VIEWS)
    simulator.close()
    cameras = {
        name: {key: view[key].tolist() for key in ("intrinsics", "extrinsics")} for name, view in seen.items()
    }
    plain = {key: np.asarray(value).tolist() for key, value in reply.items()}
    recording = {**call, **plain, "cameras": cameras}
    if os.environ.get("AI_WAM_RECORD"):
        RECORDING.write_text(json.dumps(recording) + "\n")
    committed = json.loads(RECORDING.read_text())
    assert committed["instructions"] == recording["instructions"]
    np.testing.assert_allclose(committed["actions"], recording["actions"], atol=1e-5)
    for name, camera in committed["cameras"].items():
        for key, matrix in camera.items():
            np.testing.assert_allclose(matrix, cameras[name][key], atol=1e-5)
