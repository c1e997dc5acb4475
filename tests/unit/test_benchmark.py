import math

import numpy as np
import pytest
import torch

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import ActionChunk, Clip
from ai_wam.video import decode_frames
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import Expert, HoldStill, MeanDemonstration, Replay, mean_path
from benchmarks.simulator import SimulatorCrash, Trial
from benchmarks.simulators.tabletop.simulator import Tabletop

SIZE = (32, 32)
CLIP = Clip(size=SIZE, views=("front", "left_shoulder"))
SIMULATOR = Tabletop(rig="framed", image_size=SIZE)
UP = torch.tensor([0.3, 0.0, 1.2, 0.0, 1.0, 0.0, 0.0, 1.0])


def make(parallel=2, **rules):
    rules = {"max_seconds": 2.0, "trials_per_task": 3, "tasks": ("reach_target",)} | rules
    return Benchmark(SIMULATOR, EvaluationProtocol(**rules), parallel)


@pytest.fixture(scope="module")
def benchmark_():
    made = make()
    yield made
    made.close()


class Scripted:
    """Rows of a fixed plan, with a note of what was asked."""

    def __init__(self, actions, valid=None, dt=0.2):
        self.actions, self.dt = actions, dt
        self.valid = torch.ones(len(actions), dtype=torch.bool) if valid is None else valid
        self.begun, self.asked = [], []

    def reset(self, episodes):
        self.begun += list(episodes)

    def predict_action(self, observation):
        rows = len(observation.episodes)
        self.asked += list(
            zip(observation.episodes, observation.seconds.tolist(), observation.prompts, strict=True)
        )
        return ActionChunk(
            actions=self.actions.repeat(rows, 1, 1),
            valid=self.valid.repeat(rows, 1),
            confidence=torch.ones(rows, len(self.actions)),
            dt=self.dt,
            generated={},
        )


def test_the_expert_solves_what_holding_still_does_not(benchmark_):
    trials = benchmark_.trials()
    expert = Expert(SIMULATOR)
    solved = benchmark_.run(expert, trials, CLIP)
    expert.close()
    assert [run.stop_reason for run in solved] == ["success"] * 3
    assert [run.trial for run in solved] == trials
    still = benchmark_.run(HoldStill(), trials, CLIP)
    assert [run.stop_reason for run in still] == ["timeout"] * 3
    assert {run.steps for run in still} == {40}
    assert {run.seconds for run in still} == {2.0}
    assert all("final_distance_m" in run.diagnostics for run in solved + still)


def test_the_ceiling_passes_through_the_codec_and_is_run_once_per_process(benchmark_):
    trials = benchmark_.trials()
    ceiling = benchmark_.ceiling(trials, CLIP)
    assert sum(run.success for run in ceiling) >= 2
    again = make(parallel=1)
    assert [a is b for a, b in zip(again.ceiling(trials, CLIP), ceiling, strict=True)] == [True] * 3
    other_rules = make(max_seconds=1.9)
    assert other_rules.ceiling(trials[:1], CLIP)[0] is not ceiling[0]
    other_rules.close()


def test_results_do_not_depend_on_the_batching():
    figures = []
    for parallel in (1, 2):
        made = make(parallel, execution="receding", execute_frames=2, trials_per_task=2)
        expert = Expert(SIMULATOR, horizon=3, tokenizer=ActionImageTokenizer())
        figures.append([run.to_json() for run in made.run(expert, made.trials(), CLIP)])
        expert.close()
        made.close()
    assert figures[0] == figures[1]


def test_receding_executes_k_actions_of_each_plan_and_one_shot_one_plan():
    policy = Scripted(UP.repeat(5, 1))
    receding = make(execution="receding", execute_frames=2, trials_per_task=1)
    (run,) = receding.run(policy, receding.trials(), CLIP)
    # Two actions of 0.2 s each, over 2 s: five plans, at 0, 0.4, 0.8 ...
    np.testing.assert_allclose([seconds for _, seconds, _ in policy.asked], np.arange(5) * 0.4, atol=1e-6)
    assert (run.chunks, run.steps, run.stop_reason) == (5, 40, "timeout")
    receding.close()
    policy = Scripted(UP.repeat(5, 1))
    one_shot = make(trials_per_task=1)
    (run,) = one_shot.run(policy, one_shot.trials(), CLIP)
    assert (run.chunks, run.steps) == (1, 40)
    one_shot.close()


def test_policies_hear_of_every_episode_once_and_get_one_of_its_phrasings(benchmark_):
    policy = Scripted(UP[None])
    results = benchmark_.run(policy, benchmark_.trials(), CLIP)
    assert policy.begun == [trial.id for trial in benchmark_.trials()]
    world = Tabletop(rig="framed", image_size=SIZE)
    for run, (episode, _, prompt) in zip(results, policy.asked, strict=True):
        assert (run.trial.id, run.prompt) == (episode, prompt)
        phrasings = world.reset(run.trial)
        assert prompt == phrasings[run.trial.seed % len(phrasings)]


def test_invalid_actions_are_held_counted_and_limited():
    valid = torch.tensor([True, False, True, False])
    plan = UP.repeat(4, 1)
    plan[1] = torch.nan
    lenient = make(max_invalid_frames=2, trials_per_task=1)
    (run,) = lenient.run(Scripted(plan, valid), lenient.trials(), CLIP)
    assert (run.stop_reason, run.invalid_frames) == ("timeout", 2)
    lenient.close()
    strict = make(max_invalid_frames=1, trials_per_task=1)
    (run,) = strict.run(Scripted(plan, valid), strict.trials(), CLIP)
    # The second invalid action is the fourth: it begins after three actions of four control steps.
    assert (run.stop_reason, run.invalid_frames, run.steps) == ("invalid", 2, 12)
    strict.close()


def test_poses_out_of_reach_end_the_trial():
    away = UP.clone()
    away[0] = 3.0
    made = make(max_unreached_streak=5, trials_per_task=1)
    (run,) = made.run(Scripted(away[None], dt=0.05), made.trials(), CLIP)
    assert (run.stop_reason, run.steps, run.unreached_steps) == ("unreachable", 6, 6)
    made.close()


def test_touching_another_sphere_fails_the_trial():
    made = make(trials_per_task=1)
    (named,) = made.trials()
    # The centres are listed with the named one first.
    world = Tabletop(rig="framed", image_size=SIZE)
    world.reset(named)
    wrong = world._task("reach_target").centres[1]
    plan = torch.cat([torch.tensor(wrong).float(), UP[3:]])[None]
    (run,) = made.run(Scripted(plan, dt=1.0), made.trials(), CLIP)
    assert (run.stop_reason, run.success, run.diagnostics["any_sphere"]) == ("failed", False, 1.0)
    made.close()


def test_chosen_trials_are_recorded_with_what_the_policy_generated():
    made = make(trials_per_task=2)
    trials = made.trials()
    expert = Expert(SIMULATOR, tokenizer=ActionImageTokenizer())
    first, second = made.run(expert, trials, CLIP, videos={trials[0].id})
    expert.close()
    made.close()
    assert second.video is None
    video = first.video
    assert video is not None
    assert video.panels == ("rollout", "generated actions", "overlay")
    assert video.views == CLIP.views
    frames = decode_frames(video.mp4)
    # Every second control step, the first and the last picture, and the last one held.
    assert len(frames) == 1 + -(-first.steps // 2) + 8
    assert frames.shape[1:] == (2 * 160 + 4, 3 * 160 + 2 * 4, 3)
    rollout, actions = frames[:, :160, :160].astype(int), frames[:, :160, 164:324].astype(int)
    assert rollout.std() > 20
    assert actions[..., 0].max() > 200  # the tool centre point's blob
    assert actions[..., :2].mean() < 30  # on a background without red and green


def test_a_model_of_another_rate_is_refused(benchmark_):
    with pytest.raises(ValueError, match=r"clip counts control steps at 10\.0 Hz.*20\.0 Hz"):
        benchmark_.run(HoldStill(), benchmark_.trials(), Clip(size=SIZE, control_hz=10.0))


def test_a_policy_with_the_wrong_number_of_rows_is_refused(benchmark_):
    class OneRow(Scripted):
        def predict_action(self, observation):
            chunk = super().predict_action(observation)
            return ActionChunk(chunk.actions[:1], chunk.valid[:1], chunk.confidence[:1], chunk.dt, {})

    with pytest.raises(ValueError, match="1 rows of actions for 2 observations"):
        benchmark_.run(OneRow(UP[None]), benchmark_.trials(), CLIP)


def test_no_trials_give_no_results(benchmark_):
    assert benchmark_.run(HoldStill(), [], CLIP) == []


def test_replay_reads_a_file_and_refuses_unknown_episodes(tmp_path, benchmark_):
    (trial,) = benchmark_.trials()[:1]
    expert = Expert(SIMULATOR)
    expert.reset([trial.id])
    np.savez(tmp_path / "actions.npz", **expert._replay.recorded_actions)
    expert.close()
    replay = Replay(tmp_path / "actions.npz", dt=0.2)
    (run,) = benchmark_.run(replay, [trial], CLIP)
    assert run.success
    with pytest.raises(ValueError, match="no recorded actions of"):
        replay.reset([Trial("reach_target", 1, 0).id])


class Fragile(Tabletop):
    """Crashes in the named call of one scene; what became of it is forgotten by the next reset."""

    def __init__(self, call="reset", at=1):
        super().__init__(rig="framed", image_size=SIZE)
        self.call, self.at = call, at

    @property
    def settings(self):
        return {"call": self.call, "at": self.at}

    def __setstate__(self, state):
        self.__init__(**state)

    def _may_crash(self, call):
        if self.call == call and self.trial_index == self.at:
            raise SimulatorCrash(f"{call}: the process died of SIGSEGV")

    def reset(self, trial):
        self.trial_index = trial.index
        self._may_crash("reset")
        return super().reset(trial)

    def observe(self, views=None):
        self._may_crash("observe")
        return super().observe(views)

    def step(self, action):
        self._may_crash("step")
        return super().step(action)

    def demonstrate(self):
        self._may_crash("demonstrate")
        return super().demonstrate()


@pytest.mark.parametrize("call", ["reset", "observe", "step"])
def test_a_crash_costs_one_trial_and_never_the_run(call):
    rules = EvaluationProtocol(max_seconds=0.5, trials_per_task=2, tasks=("reach_target",))
    made = Benchmark(Fragile(call, at=0), rules, parallel=2)
    trials = [Trial("reach_target", 0, index) for index in range(3)]
    policy = Scripted(UP[None])
    lost, *others = made.run(policy, trials, CLIP, videos={trials[0].id})
    assert (lost.stop_reason, lost.success, lost.video, lost.diagnostics) == ("crash", False, None, {})
    told = lost.to_json()
    assert (told["outcome"], told["error"]) == ("crash", f"{call}: the process died of SIGSEGV")
    assert [run.stop_reason for run in others] == ["timeout"] * 2
    assert "error" not in others[0].to_json()
    assert (trials[0].id in policy.begun) == (call != "reset")
    made.close()


def test_a_crash_of_the_experts_world_costs_its_trial():
    rules = EvaluationProtocol(max_seconds=2.0, trials_per_task=3, tasks=("reach_target",))
    made = Benchmark(Fragile("demonstrate", at=1), rules, parallel=2)
    trials = [Trial("reach_target", 0, index) for index in range(3)]
    assert [run.stop_reason == "crash" for run in made.ceiling(trials, CLIP)] == [False, True, False]
    made.close()


def test_other_errors_are_no_crash(monkeypatch):
    made = make(trials_per_task=1)
    monkeypatch.setattr(Tabletop, "observe", lambda self, views: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        made.run(Scripted(UP[None]), made.trials(), CLIP)
    made.close()


def about_z(degrees: float, sign: int = 1) -> list[float]:
    half = math.radians(degrees) / 2
    return [0, 0, sign * math.sin(half), sign * math.cos(half)]


def test_the_mean_of_demonstrations_by_hand():
    """Three steps without a turn, and five that turn by 90 degrees, with quaternions of either sign."""
    short = np.array([[x, 0, 0, *about_z(0), openness] for x, openness in ((0, 1), (1, 1), (2, 0))], float)
    signs = (-1, 1, -1, 1, -1)
    long = np.array([[x, 1, 0, *about_z(22.5 * x, sign), 1] for x, sign in enumerate(signs)], float)
    mean = mean_path([short, long])
    assert mean.shape == (4, 8)
    assert np.allclose(mean[:, 0], [0, 1, 2, 3])
    assert np.allclose(mean[:, 1], 0.5)
    assert np.allclose(np.linalg.norm(mean[:, 3:7], axis=1), 1)
    assert np.allclose(mean[0, 3:7], about_z(0))
    assert np.allclose(mean[-1, 3:7], about_z(45))
    assert mean[:, 7].tolist() == [1, 1, 1, 0]


def test_the_blind_floor_replays_demonstrations_of_training(monkeypatch):
    rules = EvaluationProtocol(max_seconds=2.0, trials_per_task=3, tasks=("reach_target",))
    made = Benchmark(SIMULATOR, rules, 2, blind_demonstrations=2)
    trials = made.trials()
    blind = MeanDemonstration(SIMULATOR, 2, CLIP.stride)
    blind.reset([trials[0].id])
    (path,) = blind._means.values()
    expert = Expert(SIMULATOR, CLIP.stride)
    shown = [expert.demonstration(Trial("reach_target", trials[0].variation, i, "train")) for i in range(2)]
    expected = mean_path(shown)
    assert np.allclose(path[: len(expected)], expected)
    assert len(path) == 41  # the budget of 8 s at 5 actions a second, and the first pose
    assert np.array_equal(path[len(expected) :], np.repeat(path[-1:], 41 - len(expected), axis=0))
    together = made.blind_floor(trials, CLIP)
    for result, trial in zip(together, trials, strict=True):
        assert not result.success
        assert result.steps > 10
        alone = Benchmark(SIMULATOR, rules, 1, blind_demonstrations=2)
        monkeypatch.setattr("benchmarks.evaluation.benchmark._REFERENCES", {})
        assert alone.blind_floor([trial], CLIP)[0].to_json() == result.to_json()
        alone.close()
    with pytest.raises(ValueError, match="blind_demonstrations is -1"):
        Benchmark(SIMULATOR, rules, blind_demonstrations=-1)
    for policy in (blind, expert):
        policy.close()
    made.close()
