"""Chunks that take over from one another while the arm moves, and actions held for their low confidence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.seams import jump
from ai_wam.types import ActionChunk, Clip
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.command_schedule import CommandSchedule, PlannedActions
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import Expert, HoldStill
from benchmarks.simulators.tabletop.simulator import Tabletop

SIZE = (32, 32)
CLIP = Clip(size=SIZE, views=("front", "left_shoulder"))
SIMULATOR = Tabletop(rig="framed", image_size=SIZE)
POSE = np.array([0.3, 0.0, 1.2, 0.0, 1.0, 0.0, 0.0, 1.0])


def make(parallel=2, **rules):
    rules = {"max_seconds": 2.0, "trials_per_task": 1, "tasks": ("reach_target",)} | rules
    return Benchmark(SIMULATOR, EvaluationProtocol(**rules), parallel)


class Climbing:
    """Chunk k holds the home pose k millimetres to the side; keeps the committed actions it gets."""

    def __init__(self, length=4, std=None):
        self.length, self.std, self.committed, self.calls = length, std, [], 0

    def reset(self, episodes):
        pass

    def predict_action(self, observation):
        self.committed.append(observation.committed)
        actions = torch.from_numpy(POSE).float().repeat(len(observation.episodes), self.length, 1)
        actions[..., 1] += 0.001 * self.calls
        self.calls += 1
        sure = torch.ones(actions.shape[:2])
        std = None if self.std is None else torch.tensor(self.std).expand(actions.shape[:2])
        return ActionChunk(actions, sure.bool(), sure, 0.2, {}, std)


def run(policy, **rules):
    made = make(**rules)
    (result,) = made.run(policy, made.trials(), CLIP)
    made.close()
    return result


def test_committed_actions_are_a_condition_and_carried_out_before_the_new_chunk():
    policy = Climbing()
    result = run(policy, execution="receding", execute_frames=2, prefix=2, max_seconds=1.6)
    assert result.chunks == 4
    first, *later = policy.committed
    assert not first.valid.any()
    assert not first.actions.any()
    sides = 1000 * result.commands.poses[:, 1]
    for chunk, committed in enumerate(later):
        assert committed.valid.tolist() == [[True, True]]
        # Of a chunk of 4 actions 2 were executed; committed are the poses at the next two frame times.
        now = 8 * (chunk + 1)
        expected = result.commands.poses[[now + 3, now + 7]]
        np.testing.assert_allclose(committed.actions[0], expected, atol=1e-6)
    # Chunk 0 is carried out to its end, every later one from its third action on.
    np.testing.assert_allclose(sides[[15, 16, 23, 24, 31]], [0, 1, 1, 2, 2], atol=1e-6)
    assert result.committed_frames == 6
    assert result.seams == tuple((pytest.approx(1), pytest.approx(0)) for _ in range(3))


def test_without_a_prefix_nothing_is_committed_and_seams_are_at_the_first_command():
    policy = Climbing(length=2)
    result = run(policy, execution="receding", execute_frames=2, max_seconds=1.6)
    assert policy.committed == [None] * 4
    assert result.committed_frames == 0
    assert len(result.seams) == 3
    assert all(mm < 30 for mm, _ in result.seams)


def test_a_chunk_commits_no_more_than_it_has():
    policy = Climbing(length=3)
    result = run(policy, execution="receding", execute_frames=2, prefix=2, max_seconds=1.6)
    assert [each.valid.tolist() for each in policy.committed[1:]] == [[[True, False]]] * 3
    assert result.committed_frames == 3


def test_rows_commit_their_own():
    """A policy that replays by time is not disturbed by a prefix, and batching changes nothing."""
    figures = []
    for parallel in (1, 2):
        made = make(parallel, execution="receding", execute_frames=2, prefix=2, trials_per_task=2)
        expert = Expert(SIMULATOR, horizon=4, tokenizer=ActionImageTokenizer())
        figures.append([result.to_json() for result in made.run(expert, made.trials(), CLIP)])
        expert.close()
        made.close()
    assert figures[0] == figures[1]
    assert [figure["outcome"] for figure in figures[0]] == ["success"] * 2
    assert figures[0][0]["committed_frames"] > 0
    assert max(figures[0][0]["seams"]["mm"]) < 12  # it brakes, at the codec's accuracy


def test_the_ceiling_plans_as_far_as_is_committed():
    made = make(execution="receding", execute_frames=2, prefix=2)
    (ceiling,) = made.ceiling(made.trials(), CLIP)
    made.close()
    assert ceiling.success
    assert ceiling.committed_frames >= 2


def test_low_confidence_actions_are_held_and_do_not_count_as_invalid():
    std = [0.001, 0.02, 0.001, float("inf")]
    free = run(Climbing(std=std), max_seconds=0.8)
    held = run(Climbing(std=std), max_seconds=0.8, max_position_std=0.01)
    assert (free.low_confidence_frames, free.invalid_frames) == (0, 0)
    assert (held.low_confidence_frames, held.invalid_frames) == (2, 0)
    assert held.to_json()["position_std"] == [0.001, 0.02, 0.001, None]


def replanning(std, length=4, **rules):
    policy = Climbing(length, std)
    rules = {
        "execution": "receding",
        "execute_frames": 4,
        "max_position_std": 0.01,
        "low_confidence": "replan",
    } | rules
    return policy, run(policy, max_seconds=1.6, **rules)  # 32 steps, 4 per action


def test_a_chunk_ends_at_its_first_low_confidence_action_and_is_replanned():
    held, result = replanning([0.001, 0.001, 0.02, 0.001], low_confidence="hold")
    assert (held.calls, result.low_confidence_frames) == (2, 2)
    policy, result = replanning([0.001, 0.001, 0.02, 0.001])
    assert (policy.calls, result.chunks, result.steps, result.low_confidence_frames) == (4, 4, 32, 3)
    sides = 1000 * result.commands.poses[:, 1]
    np.testing.assert_allclose(sides[[7, 15, 23, 31]], [0, 1, 2, 3], atol=1e-6)  # never a third action
    assert result.to_json()["position_std"] == [0.001] * 8


@pytest.mark.parametrize("std", [[0.02, 0.001, 0.001, 0.001], [0.02] * 4])
def test_a_low_confidence_first_action_is_held_so_that_time_passes(std):
    policy, result = replanning(std)
    assert (policy.calls, result.steps, result.stop_reason) == (8, 32, "timeout")
    assert result.low_confidence_frames == (8 if std[1] < 0.01 else 8 + 7)
    start = result.commands.poses[0]
    assert all(
        jump(start, pose) == (pytest.approx(0), pytest.approx(0, abs=1e-4))
        for pose in result.commands.poses[:32]
    )


def test_committed_actions_of_low_confidence_are_carried_out():
    policy, result = replanning([0.001, 0.001, 0.02, 0.02], prefix=2)
    # The first chunk ends at its third action, and what is left of it, held, is committed. The second's own
    # first action is its third: of low confidence, held, and the end of that chunk, of which one action is
    # left. The third's own first is its second, which is confident.
    assert [each.valid[0].tolist() for each in policy.committed[1:]] == [
        [True, True],
        [True, False],
        [True, True],
    ]
    assert (result.chunks, result.committed_frames, result.steps) == (4, 5, 32)
    assert result.low_confidence_frames == 5
    assert [std > 0.01 for std in result.position_std] == [False] * 2 + [True] * 4 + [False, True]


def test_a_limit_needs_standard_deviations():
    with pytest.raises(ValueError, match=r"max_position_std is 0\.01, but .* null"):
        run(Climbing(), max_position_std=0.01)
    assert run(HoldStill(), max_position_std=0.01, max_seconds=0.2).low_confidence_frames == 0


def test_experts_know_how_sure_their_codec_is():
    made = make(max_seconds=1.0)
    (through,) = made.ceiling(made.trials(), CLIP)
    expert = Expert(SIMULATOR)
    (sure,) = made.run(expert, made.trials(), CLIP)
    expert.close()
    made.close()
    assert max(sure.to_json()["position_std"]) == 0
    assert 0 < through.to_json()["position_std"][0] < 0.01


def test_the_last_confident_pose_is_held():
    actions = np.stack([POSE, POSE, POSE])
    actions[:, 0] += [0.1, 0.2, 0.3]
    plan = PlannedActions(actions, np.array([True, True, False]), np.array([0.001, 0.5, np.inf]), 0.1)
    schedule = CommandSchedule.of(plan, POSE, POSE, 0.01, 20.0, 7)
    np.testing.assert_allclose(schedule.poses[:, 0] - 0.3, [0.05] + [0.1] * 6)
    assert schedule.begins.tolist() == [True, False, True, False, True, False, False]
    assert schedule.low_confidence.tolist() == [False] * 2 + [True] * 2 + [False] * 3
    assert schedule.invalid.tolist() == [False] * 4 + [True] * 3


def test_a_chunk_that_ends_in_motion_is_extrapolated_in_motion():
    actions = np.stack([POSE, POSE])
    actions[:, 0] += [0.1, 0.3]
    actions[1, 3:7] = [0.0, np.cos(np.pi / 12), np.sin(np.pi / 12), 0.0]  # 30 degrees in two steps
    plan = PlannedActions(actions, np.ones(2, dtype=bool), None, 0.1)
    schedule = CommandSchedule.of(plan, POSE, POSE, None, 20.0, 4)
    np.testing.assert_array_equal(schedule.extrapolated(3), schedule.poses[3])
    assert schedule.extrapolated(4)[0] == pytest.approx(0.3 + 0.4)
    assert jump(schedule.poses[3], schedule.extrapolated(4)) == (pytest.approx(100), pytest.approx(15))
    np.testing.assert_array_equal(schedule[:1].extrapolated(1), schedule.poses[0])


def test_jumps_are_in_millimetres_and_degrees():
    turned = POSE.copy()
    turned[:3] += [0.003, 0.0, 0.004]
    turned[3:7] = -np.array([np.sin(np.pi / 12), np.cos(np.pi / 12), 0, 0])  # 30 degrees, other sign
    assert jump(POSE, turned) == (pytest.approx(5), pytest.approx(30))
    assert jump(POSE, POSE) == (0, 0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"prefix": 2}, "prefix is 2 and execution 'one_shot'"),
        ({"prefix": -1, "execution": "receding"}, "prefix is -1"),
        ({"max_position_std": 0.0}, "max_position_std is 0.0"),
        ({"low_confidence": "replan", "max_position_std": 0.01}, "'replan' with execution 'one_shot'"),
        ({"low_confidence": "replan", "execution": "receding"}, "max_position_std None"),
    ],
)
def test_rules_out_of_range_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**rules)


def test_rules_that_are_off_leave_the_hash_as_it_was():
    rules = EvaluationProtocol(execution="receding")
    assert not {"prefix", "max_position_std", "low_confidence"} & set(rules.describe(SIMULATOR, CLIP))
    limited = {"max_position_std": 0.01}
    hashes = {
        replace(rules, **change).hash(SIMULATOR, CLIP)
        for change in ({}, {"prefix": 4}, {"prefix": 8}, limited, limited | {"low_confidence": "replan"})
    }
    assert len(hashes) == 5


@pytest.mark.parametrize("prefix", [0, 1])
def test_with_latency_the_old_chunk_is_carried_out_until_the_new_one_is_there(prefix):
    policy = Climbing(length=3)
    rules = {"execute_frames": 2, "prefix": prefix, "latency": 0.25, "max_seconds": 1.2}
    result = run(policy, execution="receding", **rules)
    assert result.chunks == 3
    sides = 1000 * result.commands.poses[:, 1]
    # 0.25 s are 5 steps: after steps 8 and 16 the old chunk is followed for so long, or the prefix's 4.
    np.testing.assert_allclose(sides[[8, 12, 13, 20]], [0, 0, 1, 1], atol=1e-6)
    assert result.committed_frames == 2 * prefix
    assert [each is not None for each in policy.committed] == [bool(prefix)] * 3


def test_a_chunk_that_ends_before_the_next_one_is_there_is_held():
    result = run(Climbing(length=2), execution="receding", execute_frames=2, latency=0.3, max_seconds=0.8)
    assert result.chunks == 2
    np.testing.assert_array_equal(result.commands.poses[8:14], result.commands.poses[[7] * 6])
    assert result.commands.poses[14, 1] == pytest.approx(0.001)


def test_latency_is_a_rule_of_the_protocol():
    with pytest.raises(ValueError, match=r"latency is 0.1 and execution 'one_shot'; it .* needs execution"):
        EvaluationProtocol(latency=0.1)
    with pytest.raises(ValueError, match="latency is -1"):
        EvaluationProtocol(execution="receding", latency=-1.0)
    usual, late = (EvaluationProtocol(execution="receding", latency=each) for each in (0.0, 0.1))
    assert usual.describe(SIMULATOR, CLIP) == {
        name: value for name, value in late.describe(SIMULATOR, CLIP).items() if name != "latency"
    }
