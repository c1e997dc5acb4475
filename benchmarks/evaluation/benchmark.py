"""Closed-loop evaluation of a policy in a simulator, several trials per forward pass."""

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.episodes import Frame
from ai_wam.errors import InvalidValue
from ai_wam.types import Clip, Committed, Observation, Policy
from benchmarks.evaluation.failure_analysis import explain
from benchmarks.evaluation.protocol import EvaluationProtocol, canonical, configuration
from benchmarks.evaluation.trial_run import Chunk, TrialResult, TrialRun
from benchmarks.policies import Expert, HoldStill, MeanDemonstration
from benchmarks.simulator import Simulator, Trial

__all__ = ["Benchmark", "TrialResult"]


class Benchmark:
    """Runs trials of one simulator under one protocol.

    Args:
        simulator: prototype; it is copied for every world (running instance).
        protocol: how trials are drawn, executed and stopped.
        parallel: worlds that share one forward pass of the policy; results do not depend on it.
        tokenizer: action-image codec of the ceiling; give the model's own if it differs from the default.
        blind_demonstrations: training demonstrations of each task and variation whose mean is replayed as the
            blind floor; 0: no blind floor, as where demonstrations take minutes.
    """

    def __init__(
        self,
        simulator: Simulator,
        protocol: EvaluationProtocol | None = None,
        parallel: int = 8,
        tokenizer: ActionImageTokenizer | None = None,
        blind_demonstrations: int = 8,
    ) -> None:
        if blind_demonstrations < 0:
            raise InvalidValue(f"Benchmark: blind_demonstrations is {blind_demonstrations}; the least is 0")
        if parallel < 1:
            raise InvalidValue(f"Benchmark: parallel is {parallel}; at least one world must run")
        self.protocol = protocol or EvaluationProtocol()
        self.simulator = self.protocol.shifted(simulator)
        self.parallel, self.blind_demonstrations = parallel, blind_demonstrations
        self._usual = simulator  # whose scenes training has
        self.tokenizer = tokenizer or ActionImageTokenizer()
        self._worlds: list[Simulator] = []
        self._world_of_trial: dict[str, Simulator] = {}  # the world that ran it can restore its scene
        self._scenes: dict[str, str] = {}
        self.protocol.task_names(simulator)  # raises for unknown tasks before anything slow starts

    def trials(self) -> list[Trial]:
        """Every trial of the protocol."""
        return self.protocol.trials(self.simulator)

    def drawn(self, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
        """Values of the protocol's shift by trial id; empty without a shift."""
        shift = self.protocol.shift
        if shift is None:
            return {}
        return {trial.id: shift.draw(trial, self.simulator.cameras) for trial in trials}

    @torch.no_grad()
    def run(
        self,
        policy: Policy,
        trials: Sequence[Trial],
        clip: Clip,
        videos: Collection[str] = (),
        device: torch.device | str = "cpu",
    ) -> list[TrialResult]:
        """Run trials with a policy.

        Args:
            policy: the policy to evaluate.
            trials: which trials, in any order.
            clip: the policy's views, size and stride.
            videos: ids of the trials that get a video.
            device: of the observations that the policy gets.

        Returns:
            One result per trial, in their order.

        Raises:
            ValueError: the clip's control rate is not the simulator's.
        """
        self._check_rate(clip)
        waiting, idle = list(trials), self._open_worlds(min(self.parallel, len(trials)))
        expert = _expert(policy)
        running: list[TrialRun] = []
        results: dict[str, TrialResult] = {}
        while waiting or running:
            pairs = self._take_pairs(waiting, idle)
            begun = [TrialRun(*pair, self.protocol, clip, videos) for pair in pairs]
            for run in (run for run in begun if run.stop_reason is None):
                with run.surviving():  # an expert's world may crash as well
                    if expert is not None:
                        expert.solve(run.world, run.trial)
                    policy.reset([run.trial.id])
            running += begun
            self._advance(policy, running, clip, device)
            for run in running:
                if run.stop_reason is not None:
                    results[run.trial.id] = run.result()
                    self._scenes[run.trial.id] = run.scene
                    idle.append(run.world)
            running = [run for run in running if run.stop_reason is None]
        return [results[trial.id] for trial in trials]

    def ceiling(
        self, trials: Sequence[Trial], clip: Clip, tokenizer: ActionImageTokenizer | None = None
    ) -> list[TrialResult]:
        """Run the expert's demonstrations through an action-image codec and the same controller.

        Args:
            trials: which trials.
            clip: views and size that the codec draws.
            tokenizer: the codec; the benchmark's own if left out.
        """
        codec = tokenizer or self.tokenizer
        expert = Expert(self.simulator, clip.stride, self.protocol.max_seconds, self._horizon(clip), codec)
        try:
            return self._run_reference("ceiling", expert, trials, clip, canonical(configuration(codec)))
        finally:
            expert.close()

    def _horizon(self, clip: Clip) -> int | None:
        """Actions that a reference policy predicts at once; None: all that are left."""
        rules = self.protocol
        behind = max(rules.prefix, math.ceil(rules.latency / clip.seconds_per_frame - 1e-6))
        return None if rules.execution == "one_shot" else rules.execute_frames + behind

    def floor(self, trials: Sequence[Trial], clip: Clip) -> list[TrialResult]:
        """Run a policy that holds still: the successes that need no model."""
        return self._run_reference("floor", HoldStill(), trials, clip)

    def blind_floor(self, trials: Sequence[Trial], clip: Clip) -> list[TrialResult]:
        """Replay the mean of training demonstrations: the successes that need no eyes."""
        seconds, count = self.protocol.max_seconds, self.blind_demonstrations
        blind = MeanDemonstration(self._usual, count, clip.stride, seconds, self._horizon(clip))
        try:
            return self._run_reference("blind", blind, trials, clip, str(count))
        finally:
            blind.close()

    def explain(
        self, results: Sequence[TrialResult], tokenizer: ActionImageTokenizer | None = None
    ) -> list[TrialResult]:
        """The results with the reason of every failure; see `benchmarks.evaluation.failure_analysis`.

        Args:
            results: of `run`.
            tokenizer: the policy's action-image codec; the benchmark's own if left out.
        """
        codec, seconds = tokenizer or self.tokenizer, self.protocol.max_seconds
        explained = []
        for result in results:
            world = self._world_of_trial.get(result.trial.id) or self._open_worlds(1)[0]
            failure = explain(world, result, codec, seconds)
            if failure and failure["verdict"] != "unknown" and world.scene() != result.scene:
                failure = {
                    "verdict": "unknown",
                    "error": f"scene {result.scene} came back as {world.scene()}",
                }
            explained.append(replace(result, failure=failure, generated_chunks=()))
        return explained

    def versions(self) -> dict[str, str]:
        """Versions of the software that runs the worlds in other processes; empty until one has started."""
        return dict(next((found for world in self._worlds if (found := world.versions())), {}))

    def close(self) -> None:
        """Release every world; a later run makes new ones."""
        while self._worlds:
            self._worlds.pop().close()
        self._world_of_trial.clear()
        self._scenes.clear()

    def _run_reference(
        self, name: str, policy: Policy, trials: Sequence[Trial], clip: Clip, codec: str = ""
    ) -> list[TrialResult]:
        """Results of a reference policy, kept for the process: they are the same for every checkpoint."""
        setting = self.protocol.hash(self.simulator, clip) + codec
        known = _REFERENCES.setdefault((name, setting), {})
        missing = [trial for trial in trials if not self._is_current(known.get(trial.id))]
        made = [replace(result, generated_chunks=()) for result in self.run(policy, missing, clip)]
        known.update({result.trial.id: result for result in made})
        return [known[trial.id] for trial in trials]

    def _is_current(self, known: TrialResult | None) -> bool:
        """Whether a kept reference did not crash and ran in the scene that the trial has now."""
        return (
            known is not None
            and known.stop_reason != "crash"
            and self._scenes.get(known.trial.id, known.scene) == known.scene
        )

    def _take_pairs(self, waiting: list[Trial], idle: list[Simulator]) -> list[tuple[Simulator, Trial]]:
        """Pop trials and worlds for them off the two lists; a trial keeps the world that ran it before."""
        pairs = []
        for trial in list(waiting):
            free = [world for world in idle if world is self._world_of_trial.get(trial.id, world)]
            if free:
                self._world_of_trial[trial.id] = free[0]
                idle.remove(free[0])
                waiting.remove(trial)
                pairs.append((free[0], trial))
        return pairs

    def _advance(
        self, policy: Policy, runs: "Sequence[TrialRun]", clip: Clip, device: torch.device | str
    ) -> None:
        """Predict one chunk for every running trial in one forward pass, and execute it."""
        frames: dict[TrialRun, Frame] = {}
        for run in (run for run in runs if run.stop_reason is None):
            with run.surviving():
                frames[run] = run.observe()
        if not frames:
            return
        chunks = self._predict(policy, list(frames), list(frames.values()), clip, device)
        for run, chunk in zip(frames, chunks, strict=True):
            with run.surviving():
                run.execute(chunk)

    def _predict(
        self,
        policy: Policy,
        runs: "Sequence[TrialRun]",
        frames: Sequence[Frame],
        clip: Clip,
        device: torch.device | str,
    ) -> list[Chunk]:
        prompts, names = [run.prompt for run in runs], [run.trial.id for run in runs]
        observation = Observation.from_frames(frames, prompts, names, clip)
        if self.protocol.prefix:
            rows = [run.committed() for run in runs]
            actions, valid = torch.cat([row.actions for row in rows]), torch.cat([row.valid for row in rows])
            observation = replace(observation, committed=Committed(actions, valid))
        if torch.device(device).type != "cpu":  # moving checks every camera again, a third of a step's cost
            observation = observation.to(device)
        chunk = policy.predict_action(observation)
        if len(chunk.actions) != len(runs):
            raise InvalidValue(
                f"{type(policy).__name__}.predict_action gave {len(chunk.actions)} rows of actions for "
                f"{len(runs)} observations; it must give one per row"
            )
        return [Chunk.of(chunk, observation, row, run.has_video) for row, run in enumerate(runs)]

    def _open_worlds(self, count: int) -> list[Simulator]:
        """All worlds, after making as many as are missing."""
        while len(self._worlds) < count:
            self._worlds.append(copy.deepcopy(self.simulator))
        return list(self._worlds)

    def _check_rate(self, clip: Clip) -> None:
        if clip.control_hz != self.simulator.control_hz:
            raise InvalidValue(
                f"the model's clip counts control steps at {clip.control_hz} Hz, "
                f"{type(self.simulator).__name__} runs at {self.simulator.control_hz} Hz, so its stride of "
                f"{clip.stride} would be another time; evaluate at the rate the model was trained with"
            )


def _expert(policy: Policy) -> Expert | None:
    """The expert that a policy is or wraps, which must solve a trial in the world that runs it; else None."""
    inner = getattr(policy, "policy", policy)
    return inner if isinstance(inner, Expert) else None


_REFERENCES: dict[tuple[str, str], dict[str, TrialResult]] = {}
