"""Trials, demonstrations and references in RLBench, over an in-repo double of its names."""

import math

import numpy as np
import pytest
from rlbench_twin import SIZE, TRIAL, make

from ai_wam.types import Clip
from benchmarks.demonstrations import Demonstrations
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import Expert, HoldStill
from benchmarks.simulator import SimulatorCrash
from benchmarks.simulators.rlbench.client import EnvironmentServer
from benchmarks.simulators.rlbench.simulator import RLBench
from tasks.fixed_policy import FixedPolicy


@pytest.fixture(scope="module")
def simulator(rlbench_simulator):
    return rlbench_simulator


def test_an_error_nobody_listed_costs_one_trial_and_not_the_run(faulty):
    rules = EvaluationProtocol(max_seconds=0.2, trials_per_task=3, tasks=("reach_target",))
    made = Benchmark(faulty("unheard:step:6"), rules, parallel=1)
    results = made.run(HoldStill(), made.trials(), Clip(size=SIZE))
    assert [run.stop_reason for run in results] == ["timeout", "crash", "timeout"]
    assert "WaypointError: a waypoint of the task is gone" in results[1].error
    made.close()


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
