"""Why trials failed, and what standard deviations say of success."""

import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import ActionChunk, Clip
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.failure_analysis import explain
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.results import assemble
from benchmarks.evaluation.success_against_std import cells, curve
from benchmarks.policies import Expert
from benchmarks.report.html_report import render
from benchmarks.simulator import SimulatorCrash, Trial
from benchmarks.simulators.tabletop.simulator import Tabletop

SIZE = (32, 32)
CLIP = Clip(size=SIZE, views=("front", "left_shoulder"))
SIMULATOR = Tabletop(rig="framed", image_size=SIZE)
RULES = EvaluationProtocol(max_seconds=2.0, trials_per_task=2, tasks=("reach_target",))


CODEC = ActionImageTokenizer()


class Altered:
    """The expert's demonstration, changed; `picture` makes action images of the expert's chunk, if given."""

    def __init__(self, change, picture=None):
        self.change, self.picture, self.expert = change, picture, Expert(SIMULATOR)

    def reset(self, episodes):
        self.expert.reset(episodes)

    def predict_action(self, observation):
        chunk = self.expert.predict_action(observation)
        changed = self.change(chunk)
        if self.picture is None:
            return changed
        images = self.picture(chunk, observation)
        return replace(changed, generated={"action_images": 2 * images - 1})


def too_fast(chunk: ActionChunk) -> ActionChunk:
    """There and back at a speed no arm can follow."""
    back = chunk.actions[:, :1].expand(-1, 20, -1)
    actions = torch.cat([chunk.actions.flip(1)[:, ::3].flip(1), back], dim=1)
    sure = torch.ones(actions.shape[:2])
    return ActionChunk(actions, sure.bool(), sure, 0.05, {}, 1 - sure)


def aside(chunk: ActionChunk) -> ActionChunk:
    """The same way 15 cm higher, which passes above the spheres."""
    return replace(chunk, actions=chunk.actions + torch.tensor([0, 0, 0.15, 0, 0, 0, 0, 0]))


def right(chunk: ActionChunk) -> ActionChunk:
    return chunk


def unread(chunk: ActionChunk) -> ActionChunk:
    return replace(chunk, valid=torch.zeros_like(chunk.valid))


def one_unread(chunk: ActionChunk) -> ActionChunk:
    valid = chunk.valid.clone()
    valid[:, 1] = False
    return replace(aside(chunk), valid=valid)


def drawn(change=right, with_start=True):
    def picture(chunk, observation):
        actions = change(chunk).actions
        if with_start:
            actions = torch.cat([observation.action[:, None], actions], dim=1)
        cameras = observation.cameras.map(lambda m: m[:, :, -1:].expand(-1, -1, actions.shape[1], -1, -1))
        return CODEC.encode(actions, cameras, SIZE)

    return picture


def black(chunk, observation):
    return torch.zeros_like(drawn()(chunk, observation))


def results_of(change, rules=RULES, picture=None):
    made = Benchmark(SIMULATOR, rules, parallel=2)
    policy = Altered(change, picture)
    results = made.explain(made.run(policy, made.trials(), CLIP))
    policy.expert.close()
    made.close()
    return results


@pytest.mark.parametrize(
    ("change", "picture", "verdict"),
    [
        (too_fast, None, "controller missed"),
        (aside, None, "no action images"),
        (one_unread, None, "no action images"),
        (aside, drawn(aside), "generated wrong"),
        (one_unread, drawn(aside), "generated wrong"),  # one invalid action does not make pictures right
        (unread, black, "generated wrong"),  # nothing to read
        (unread, drawn(), "decoded wrong"),
        (aside, drawn(), "decoded wrong"),  # though every action is valid
        (aside, drawn(with_start=False), "decoded wrong"),  # pictures of the actions alone
    ],
)
def test_failures_are_classified(change, picture, verdict):
    for result in results_of(change, picture=picture):
        assert not result.success
        failure = result.failure
        assert failure["verdict"] == verdict
        near = failure["expert_mm"]
        assert near < 5 if verdict == "controller missed" else near > 50
        held = {one_unread: 1, unread: failure["actions"]}.get(change, 0)
        assert failure["held_actions"] == held
        if verdict == "decoded wrong":
            assert failure["off_but_generated_right"] == failure["off_actions"] > 0
        if verdict == "generated wrong":
            assert (failure["off_but_generated_right"], failure["off_actions"] > 3) == (0, True)
        assert json.loads(json.dumps(result.to_json()))["failure"] == failure
        assert result.generated_chunks == ()


def test_images_of_an_open_and_of_a_closed_gripper_differ():
    closed = lambda chunk: replace(chunk, actions=chunk.actions * torch.tensor([1.0] * 7 + [0]))  # noqa: E731
    for picture, verdict in ((drawn(closed), "generated wrong"), (drawn(), "decoded wrong")):
        (result, _) = results_of(lambda chunk: closed(aside(chunk)), picture=picture)
        assert result.failure["verdict"] == verdict


@pytest.mark.parametrize(("first", "verdict"), [("picture", "generated wrong"), ("reading", "decoded wrong")])
def test_the_first_chunk_that_is_off_decides(first, verdict):
    """Chunks go wrong in one way from the second on, and in the other way from the third on."""

    def later(chunk, observation, number):
        return observation.seconds[0] > 0.2 * number - 0.01

    def picture(chunk, observation):
        begins = 2 if first == "picture" else 4
        return drawn(aside if later(chunk, observation, begins) else right)(chunk, observation)

    class Drifting(Altered):
        def predict_action(self, observation):
            self.change = aside if later(None, observation, 2) else right
            return super().predict_action(observation)

    rules = replace(RULES, execution="receding", execute_frames=2, max_seconds=1.2)
    made = Benchmark(SIMULATOR, rules, parallel=2)
    policy = Drifting(right, picture)
    run = made.run(policy, made.trials(), CLIP)
    assert [len(chunk.images[0, 0]) for chunk in run[0].generated_chunks] == [2] * run[0].chunks
    assert [result.failure["verdict"] for result in made.explain(run)] == [verdict] * 2
    policy.expert.close()
    made.close()


def test_actions_are_evaluated_where_they_are_in_force():
    """Committed actions are the older chunk's, so a new chunk's pictures of them do not count."""
    rules = replace(RULES, execution="receding", execute_frames=2, prefix=2)
    for result in results_of(aside, rules, drawn(aside)):
        assert result.failure["verdict"] == "generated wrong"
        assert result.failure["off_actions"] == 4  # the first chunk's: two executed, two committed


def test_only_results_with_their_chunks_can_be_explained():
    (result, _) = results_of(aside, picture=drawn())
    with pytest.raises(ValueError, match="has 1 chunks, of which 0 are kept"):
        explain(SIMULATOR, result, CODEC, 2.0)


def test_success_needs_no_reason_and_a_crash_has_none():
    solved, _ = results_of(lambda chunk: chunk)
    assert solved.success
    assert solved.failure is None
    assert "failure" not in solved.to_json()
    lost = replace(solved, stop_reason="crash", commands=None)
    assert explain(SIMULATOR, lost, CODEC, 2.0) == {"verdict": "unknown"}

    class Fragile(Tabletop):
        def reset(self, trial):
            raise SimulatorCrash("reset: gone")

    failed = replace(solved, stop_reason="timeout")
    assert explain(Fragile(image_size=SIZE), failed, CODEC, 2.0) == {
        "verdict": "unknown",
        "error": "reset: gone",
    }


def results_with(stds, successes):
    """Results of trials with the given standard deviations."""
    trials = [
        {"policy": {"position_std": std, "outcome": "success" if success else "failure"}}
        for std, success in zip(stds, successes, strict=True)
    ]
    return {"trials": trials}


def test_success_against_confidence_by_hand():
    stds = [[0.001, 0.004], [0.002, None], [0.010], [0.008, 0.001], [None], []]
    found = curve(results_with(stds, [False, True, False, True, True, True]))
    assert [row.limit for row in found] == [0.002, 0.004, 0.008, 0.010]
    assert [(row.below.successes, row.below.trials) for row in found] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    above = [row.above and (row.above.successes, row.above.trials) for row in found]
    assert above == [(1, 3), (1, 2), (0, 1), None]
    assert cells(found[1]) == ("4.00", "1/2 [9, 91] %", "1/2")
    assert curve(results_with([[], [None]], [True, False])) == []


def test_limits_divide_the_trials_evenly():
    stds = np.random.default_rng(0).permutation(np.arange(1, 101) / 1000)
    found = curve(results_with([[std] for std in stds], [True] * 100), rows=4)
    assert [row.below.trials for row in found] == [25, 50, 75, 100]


def test_the_table_is_printed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["confidence", str(path)])
    path.write_text(json.dumps(results_with([[0.002], [0.004]], [True, False])))
    runpy.run_path("benchmarks/evaluation/success_against_std.py", run_name="__main__")
    assert capsys.readouterr().out.split("\n")[1].split() == ["2.00", "1/1", "[21,", "100]", "%", "0/1"]
    path.write_text(json.dumps(results_with([[]], [True])))
    with pytest.raises(SystemExit, match="no trial has standard deviations"):
        runpy.run_path("benchmarks/evaluation/success_against_std.py", run_name="__main__")


def test_results_and_report_say_how_the_policy_acts():
    rules = replace(RULES, execution="receding", execute_frames=2)

    def unsure(chunk):
        return replace(aside(chunk), position_std=torch.full(chunk.valid.shape, 0.004))

    results = [results_of(unsure, rules, drawn(aside))[0], results_of(unsure, rules)[1]]
    arms = {"policy": {result.trial.id: result for result in results}}
    described = rules.describe(SIMULATOR, CLIP)
    policy = {"name": "x", "config": {}, "checkpoint": None}
    content = assemble([result.trial for result in results], arms, described, "", policy)
    summary = content["tasks"]["reach_target"]
    assert summary["failures"] == {"generated wrong": 1, "no action images": 1}
    jumps = [mm for result in results for mm, _ in result.seams]
    assert summary["seam_mm"] == {"mean": pytest.approx(np.mean(jumps)), "max": max(jumps)}
    page = render(content, {})
    assert (
        "<th>generated wrong</th><th>decoded wrong</th><th>controller missed</th><th>no action images</th>"
        in page
    )
    assert "<td>1</td><td>0</td><td>0</td><td>1</td><td>0</td>" in page
    assert f"<td>{np.mean(jumps):.1f}, {max(jumps):.1f}</td>" in page
    assert "Success against confidence" in page
    assert [trial["policy"]["failure"]["verdict"] for trial in content["trials"]] == [
        "generated wrong",
        "no action images",
    ]
    assert Trial.from_id(content["trials"][0]["id"]) == results[0].trial
