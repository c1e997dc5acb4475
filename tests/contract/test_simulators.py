"""Every simulator of the shipped benchmarks keeps the contract; a new one is found by its YAML.

RLBench runs through its real server process over the double of its names, since CoppeliaSim is not here.
"""

import copy
import dataclasses
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from ai_wam.cli.shipped_configs import instantiate
from ai_wam.episodes import Frame
from benchmarks.shifts import Shift, ShiftedSimulator, parts
from benchmarks.simulator import Shiftable, Simulator, Trial

TESTS = Path(__file__).parents[1]
SMALL = {"image_size": [48, 64], "views": ["left_shoulder", "right_shoulder"]}
TASKS = ("reach_target", "reach")  # the one that a simulator has is what it is tested with
PACKAGES = {"benchmarks.simulators.metaworld.simulator.MetaWorld": "metaworld"}  # of extras
STANDING_IN = {
    "benchmarks.simulators.rlbench.simulator.RLBench": {"paths": [str(TESTS / "doubles" / "rlbench_double")]}
}


def described() -> dict[str, dict[str, Any]]:
    """The simulators of configs/benchmark, each class once."""
    found = {}
    for file in sorted((TESTS.parent / "configs" / "benchmark").glob("*.yaml")):
        simulator = yaml.safe_load(file.read_text())["init_args"]["benchmark"]["init_args"]["simulator"]
        name = simulator["class_path"]
        settings = simulator.get("init_args", {}) | SMALL | STANDING_IN.get(name, {})
        found.setdefault(name, {"class_path": name, "init_args": settings})
    return found


@pytest.fixture(scope="module", params=described().items(), ids=lambda pair: pair[0].rpartition(".")[2])
def simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    name, described_simulator = request.param
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"needs the extra: pip install 'ai-wam[{PACKAGES[name]}]'")
    made = instantiate(described_simulator, Simulator)
    yield made
    made.close()


def trial(simulator: Simulator, index: int = 0) -> Trial:
    task = next(name for name in TASKS if name in simulator.tasks())
    return Trial(task, simulator.tasks()[task] - 1, index)


def test_says_what_it_plays(simulator: Simulator):
    assert isinstance(simulator, Simulator)
    assert simulator.control_hz > 0
    assert all(count >= 1 for count in simulator.tasks().values())
    instructions = simulator.reset(trial(simulator))
    assert instructions
    assert all(instructions)


def test_a_trial_is_one_scene_and_another_trial_is_another(simulator: Simulator):
    seen: list[tuple[str, Frame]] = []
    for index in (0, 1, 0):
        simulator.reset(trial(simulator, index))
        seen.append((simulator.scene(), simulator.observe(["left_shoulder"])))
    (first, frame), (other, _), (again, same) = seen
    assert first == again != other
    np.testing.assert_array_equal(frame.views["left_shoulder"].image, same.views["left_shoulder"].image)
    np.testing.assert_allclose(frame.action, same.action, atol=1e-5)


def test_draws_what_is_asked_with_sound_cameras(simulator: Simulator):
    simulator.reset(trial(simulator))
    assert set(simulator.observe(["left_shoulder"]).views) == {"left_shoulder"}
    frame = simulator.observe()
    assert set(frame.views) == set(SMALL["views"])
    for view in frame.views.values():
        assert view.image.shape == (*SMALL["image_size"], 3)
        assert (np.diag(view.intrinsics) > 0).all()
        rotation = view.world_from_camera[:3, :3].astype(np.float64)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
    pose = simulator.pose()
    np.testing.assert_allclose(frame.action, pose, atol=1e-5)
    assert np.linalg.norm(pose[3:7]) == pytest.approx(1, abs=1e-5)
    assert 0 <= pose[7] <= 1


def test_its_expert_solves_the_trial_and_stops(simulator: Simulator):
    simulator.reset(trial(simulator))
    steps = islice(simulator.demonstrate(), round(60 * simulator.control_hz))
    outcomes = [simulator.step(action) for action in steps]
    assert any(outcome.success for outcome in outcomes)
    assert not any(outcome.failed for outcome in outcomes)
    assert all(isinstance(value, float) for value in simulator.diagnostics().values())


@pytest.mark.parametrize(
    "action",
    [np.zeros(7), np.full(8, np.nan), np.array([0.3, 0, 1, 0, 0, 0, 0, 1])],
    ids=["7", "nan", "turn"],
)
def test_bad_actions_are_refused_and_move_nothing(simulator: Simulator, action: np.ndarray):
    simulator.reset(trial(simulator))
    before = simulator.pose()
    with pytest.raises(ValueError, match="action"):
        simulator.step(action)
    np.testing.assert_array_equal(simulator.pose(), before)


def test_unknown_trials_are_refused(simulator: Simulator):
    known = trial(simulator)
    with pytest.raises(ValueError, match="fold_towel"):
        simulator.reset(dataclasses.replace(known, task="fold_towel"))
    with pytest.raises(ValueError, match="variation 10000"):
        simulator.reset(dataclasses.replace(known, variation=10_000))


def test_a_copy_plays_the_same_scenes_and_a_closed_world_begins_anew(simulator: Simulator):
    simulator.reset(trial(simulator))
    scene, pose = simulator.scene(), simulator.pose()
    twin = copy.deepcopy(simulator)
    for _ in range(2):
        twin.reset(trial(simulator))
        assert twin.scene() == scene
        np.testing.assert_allclose(twin.pose(), pose, atol=1e-5)
        twin.close()


def test_parts_of_a_shift_are_built_or_refused(simulator: Simulator):
    able = simulator.shift_parts if isinstance(simulator, Shiftable) else frozenset()
    kinds = {field.name: get_args(field.type)[0] for field in dataclasses.fields(Shift)}
    assert able <= kinds.keys()
    for name, kind in kinds.items():
        if kind.of_scene and name not in able:
            with pytest.raises(ValueError, match=rf"cannot build \['{name}'\]"):
                ShiftedSimulator(simulator, Shift(**{name: kind()}))
        else:
            ShiftedSimulator(simulator, Shift(**{name: kind()}))


def test_pictures_are_spoilt_and_cameras_misplaced_in_every_simulator(simulator: Simulator):
    shift = Shift(sensor=parts.SensorShift(noise=(20, 20)), calibration=parts.CalibrationShift((2, 2)))
    shifted = ShiftedSimulator(simulator, shift)
    simulator.reset(trial(simulator))
    usual, scene = simulator.observe(["left_shoulder"]).views["left_shoulder"], simulator.scene()
    shifted.reset(trial(simulator))
    seen = shifted.observe(["left_shoulder"]).views["left_shoulder"]
    assert shifted.scene().startswith(scene)
    assert not np.array_equal(seen.image, usual.image)
    assert np.allclose(seen.world_from_camera[:3, 3], usual.world_from_camera[:3, 3])
    assert not np.allclose(seen.world_from_camera, usual.world_from_camera)


def test_a_shift_is_for_one_reset(simulator: Simulator):
    """Also if that reset is refused: no later trial may be shifted unasked."""
    if not isinstance(simulator, Shiftable):
        return
    where = trial(simulator)
    simulator.reset(where)
    usual = simulator.observe(["front"]).views["front"]
    shifted = ShiftedSimulator(simulator, Shift(cameras=parts.CameraShift((40, 40), views=("front",))))
    with pytest.raises(ValueError, match="fold_towel"):
        shifted.reset(Trial("fold_towel", 0, 0))
    for reset, same in ((simulator.reset, True), (shifted.reset, False), (simulator.reset, True)):
        reset(where)
        seen = simulator.observe(["front"]).views["front"]
        assert np.allclose(seen.world_from_camera, usual.world_from_camera) == same
        assert np.array_equal(seen.image, usual.image) == same
