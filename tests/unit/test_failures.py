"""Why trials failed, and what standard deviations say of success."""

import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ai_wam.types import ActionChunk, Clip
from benchmarks.acting import acting
from benchmarks.base import SimulatorCrash, Trial
from benchmarks.benchmark import Benchmark
from benchmarks.confidence import cells, curve
from benchmarks.failures import explain
from benchmarks.policies import Expert
from benchmarks.protocol import EvaluationProtocol
from benchmarks.results import assemble
from benchmarks.tabletop.simulator import Tabletop

SIZE = (32, 32)
CLIP = Clip(size=SIZE, views=("front", "left_shoulder"))
SIMULATOR = Tabletop(rig="framed", image_size=SIZE)
RULES = EvaluationProtocol(max_seconds=2.0, trials_per_task=2, tasks=("reach_target",))


class Altered:
    """The expert's demonstration, changed."""

    def __init__(self, change):
        self.change, self.expert = change, Expert(SIMULATOR)

    def reset(self, episodes):
        self.expert.reset(episodes)

    def predict_action(self, observation):
        return self.change(self.expert.predict_action(observation))


def too_fast(chunk: ActionChunk) -> ActionChunk:
    """There and back at a speed no arm can follow."""
    back = chunk.actions[:, :1].expand(-1, 20, -1)
    actions = torch.cat([chunk.actions.flip(1)[:, ::3].flip(1), back], dim=1)
    sure = torch.ones(actions.shape[:2])
    return ActionChunk(actions, sure.bool(), sure, 0.05, {}, 1 - sure)


def aside(chunk: ActionChunk) -> ActionChunk:
    """The same way 15 cm higher, which passes above the spheres."""
    return replace(chunk, actions=chunk.actions + torch.tensor([0, 0, 0.15, 0, 0, 0, 0, 0]))


def vague(chunk: ActionChunk) -> ActionChunk:
    return replace(aside(chunk), position_std=torch.full(chunk.valid.shape, 0.05))


def unread(chunk: ActionChunk) -> ActionChunk:
    valid = chunk.valid.clone()
    valid[:, 1] = False
    return replace(aside(chunk), valid=valid)


def results_of(change, rules=RULES):
    made = Benchmark(SIMULATOR, rules, parallel=2)
    policy = Altered(change)
    results = made.explain(made.run(policy, made.trials(), CLIP))
    policy.expert.close()
    made.close()
    return results


@pytest.mark.parametrize(
    ("change", "verdict", "untrusted"),
    [
        (too_fast, "controller missed", 0),
        (aside, "imagined wrong", 0),
        (vague, "decoded wrong", None),
        (unread, "decoded wrong", 1),
    ],
)
def test_failures_are_told_apart(change, verdict, untrusted):
    for result in results_of(change):
        assert not result.success
        assert result.failure["verdict"] == verdict
        assert result.failure["untrusted_actions"] == (
            result.failure["actions"] if untrusted is None else untrusted
        )
        near = result.failure["expert_mm"]
        assert near < 5 if verdict == "controller missed" else near > 50
        assert json.loads(json.dumps(result.to_json()))["failure"] == result.failure


def test_the_limit_of_the_protocol_decides_what_is_vague():
    (result, _) = results_of(vague)
    assert explain(SIMULATOR, result, 0.06, 2.0)["verdict"] == "imagined wrong"
    assert explain(SIMULATOR, result, 0.04, 2.0)["verdict"] == "decoded wrong"


def test_success_needs_no_reason_and_a_crash_has_none():
    solved, _ = results_of(lambda chunk: chunk)
    assert solved.success
    assert solved.failure is None
    assert "failure" not in solved.to_json()
    lost = replace(solved, stop_reason="crash", decoded=None)
    assert explain(SIMULATOR, lost, None, 2.0) == {"verdict": "unknown"}

    class Fragile(Tabletop):
        def reset(self, trial):
            raise SimulatorCrash("reset: gone")

    failed = replace(solved, stop_reason="timeout")
    assert explain(Fragile(image_size=SIZE), failed, None, 2.0) == {
        "verdict": "unknown",
        "error": "reset: gone",
    }


def told(stds, successes):
    """Results of trials with the given standard deviations."""
    trials = [
        {"policy": {"position_std": std, "outcome": "success" if success else "failure"}}
        for std, success in zip(stds, successes, strict=True)
    ]
    return {"trials": trials}


def test_success_against_confidence_by_hand():
    stds = [[0.001, 0.004], [0.002, None], [0.010], [0.008, 0.001], [None], []]
    found = curve(told(stds, [False, True, False, True, True, True]))
    assert [row.limit for row in found] == [0.002, 0.004, 0.008, 0.010]
    assert [(row.below.successes, row.below.trials) for row in found] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    above = [row.above and (row.above.successes, row.above.trials) for row in found]
    assert above == [(1, 3), (1, 2), (0, 1), None]
    assert cells(found[1]) == ("4.00", "1/2 [9, 91] %", "1/2")
    assert curve(told([[], [None]], [True, False])) == []


def test_limits_divide_the_trials_evenly():
    stds = np.random.default_rng(0).permutation(np.arange(1, 101) / 1000)
    found = curve(told([[std] for std in stds], [True] * 100), rows=4)
    assert [row.below.trials for row in found] == [25, 50, 75, 100]


def test_the_table_is_printed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["confidence", str(path)])
    path.write_text(json.dumps(told([[0.002], [0.004]], [True, False])))
    runpy.run_path("benchmarks/confidence.py", run_name="__main__")
    assert capsys.readouterr().out.split("\n")[1].split() == ["2.00", "1/1", "[21,", "100]", "%", "0/1"]
    path.write_text(json.dumps(told([[]], [True])))
    with pytest.raises(SystemExit, match="no trial has standard deviations"):
        runpy.run_path("benchmarks/confidence.py", run_name="__main__")


def test_results_and_report_say_how_the_policy_acts():
    rules = replace(RULES, execution="receding", execute_frames=2)
    results = results_of(aside, rules)
    arms = {"policy": {result.trial.id: result for result in results}}
    described = rules.describe(SIMULATOR, CLIP)
    content = assemble([result.trial for result in results], arms, described, "", {"name": "x", "config": {}})
    summary = content["tasks"]["reach_target"]
    assert summary["failures"] == {"imagined wrong": 2}
    jumps = [mm for result in results for mm, _ in result.seams]
    assert summary["seam_mm"] == {"mean": pytest.approx(np.mean(jumps)), "max": max(jumps)}
    page = acting(content)
    assert "<th>imagined wrong</th>" in page
    assert f"<td>{np.mean(jumps):.1f}, {max(jumps):.1f}</td>" in page
    assert "Success against confidence" in page
    assert [trial["policy"]["failure"]["verdict"] for trial in content["trials"]] == ["imagined wrong"] * 2
    assert Trial.from_id(content["trials"][0]["id"]) == results[0].trial
