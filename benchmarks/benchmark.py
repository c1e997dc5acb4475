"""Closed-loop evaluation: any policy, any simulator, several trials per forward."""

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import ActionChunk, Clip, Frame, Observation, Policy
from benchmarks.base import Simulator, SimulatorCrash, Trial
from benchmarks.controller import commands, control_steps, hold_invalid
from benchmarks.policies import Expert, HoldStill
from benchmarks.protocol import EvaluationProtocol, canonical, configuration
from benchmarks.recording import Recorder, Recording

StopReason = Literal["success", "failed", "timeout", "invalid", "unreachable", "crash"]
_PICTURES_PER_SECOND = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """How a trial went.

    Attributes:
        trial: which one.
        prompt: the instruction given.
        stop_reason: "success"; "failed" (the goal can no longer be reached); "timeout" (budget spent);
            "invalid" (too many invalid actions); "unreachable" (too many poses in a row without a solution);
            "crash" (the simulator lost the trial, which counts as not solved).
        steps: control steps made.
        seconds: simulated time.
        plans: chunks asked of the policy.
        invalid_frames: actions that were held because the policy could not vouch for them.
        unreached_steps: control steps whose pose inverse kinematics could not follow.
        diagnostics: the simulator's figures at the end.
        recording: pictures, if the trial was chosen for them.
        error: what the simulator's crash said.
    """

    trial: Trial
    prompt: str
    stop_reason: StopReason
    steps: int
    seconds: float
    plans: int
    invalid_frames: int
    unreached_steps: int
    diagnostics: Mapping[str, float]
    recording: Recording | None = None
    error: str | None = None

    @property
    def success(self) -> bool:
        """Whether the task was solved."""
        return self.stop_reason == "success"

    def to_json(self) -> dict[str, Any]:
        """Everything but the trial's name, its instruction and the pictures."""
        figures = ("steps", "seconds", "plans", "invalid_frames", "unreached_steps")
        return {
            "outcome": self.stop_reason if self.stop_reason in ("success", "crash") else "failure",
            "stop_reason": self.stop_reason,
            **{name: getattr(self, name) for name in figures},
            # JSON has no NaN: a figure that does not apply to the trial is null.
            "diagnostics": {
                name: value if isfinite(value) else None for name, value in self.diagnostics.items()
            },
            **({} if self.error is None else {"error": self.error}),
        }


class Benchmark:
    """Trials of one simulator under one protocol.

    Args:
        simulator: prototype; it is copied for every world that runs.
        protocol: how trials are drawn, executed and stopped.
        parallel: worlds that share one forward of the policy; results do not depend on it.
        tokenizer: the codec of the ceiling; the model's own if it differs from the default.
    """

    def __init__(
        self,
        simulator: Simulator,
        protocol: EvaluationProtocol | None = None,
        parallel: int = 8,
        tokenizer: ActionImageTokenizer | None = None,
    ) -> None:
        if parallel < 1:
            raise ValueError(f"Benchmark: parallel is {parallel}; at least one world must run")
        self.simulator = simulator
        self.protocol = protocol or EvaluationProtocol()
        self.parallel = parallel
        self.tokenizer = tokenizer or ActionImageTokenizer()
        self._worlds: list[Simulator] = []
        self.protocol.task_names(simulator)  # unknown tasks are reported before anything long has begun

    def trials(self) -> list[Trial]:
        """Every trial of the protocol."""
        return self.protocol.trials(self.simulator)

    @torch.no_grad()
    def run(
        self,
        policy: Policy,
        trials: Sequence[Trial],
        clip: Clip,
        record: Collection[str] = (),
        device: torch.device | str = "cpu",
    ) -> list[TrialResult]:
        """Let a policy act.

        Args:
            policy: what is tested.
            trials: which trials, in any order.
            clip: the policy's views and size.
            record: ids of the trials to take pictures of.
            device: where the policy wants its observations.

        Returns:
            One result per trial, in their order.

        Raises:
            ValueError: the clip's control rate is not the simulator's.
        """
        self._check_rate(clip)
        waiting, idle = list(reversed(trials)), list(self._pool(min(self.parallel, len(trials))))
        running: list[_Run] = []
        results: dict[str, TrialResult] = {}
        while waiting or running:
            begun = [
                _Run(idle.pop(), waiting.pop(), self.protocol, clip, record)
                for _ in range(min(len(idle), len(waiting)))
            ]
            for run in (run for run in begun if run.stop_reason is None):
                with run.surviving():  # an expert's own world may crash as well
                    policy.reset([run.trial.id])
            running += begun
            self._advance(policy, running, clip, device)
            for run in running:
                if run.stop_reason is not None:
                    results[run.trial.id] = run.result()
                    idle.append(run.world)
            running = [run for run in running if run.stop_reason is None]
        return [results[trial.id] for trial in trials]

    def ceiling(
        self, trials: Sequence[Trial], clip: Clip, tokenizer: ActionImageTokenizer | None = None
    ) -> list[TrialResult]:
        """The expert's demonstrations through an action-image codec and the same controller.

        Args:
            trials: which trials.
            clip: views and size the codec draws.
            tokenizer: the codec; the benchmark's own if left out.
        """
        codec = tokenizer or self.tokenizer
        horizon = None if self.protocol.execution == "one_shot" else self.protocol.execute_frames
        expert = Expert(self.simulator, clip.stride, self.protocol.max_seconds, horizon, codec)
        try:
            return self._reference("ceiling", expert, trials, clip, canonical(configuration(codec)))
        finally:
            expert.close()

    def floor(self, trials: Sequence[Trial], clip: Clip) -> list[TrialResult]:
        """Hold still: what the scenes give away for nothing."""
        return self._reference("floor", HoldStill(), trials, clip)

    def close(self) -> None:
        """Release every world; a later run makes new ones."""
        while self._worlds:
            self._worlds.pop().close()

    def _reference(
        self, name: str, policy: Policy, trials: Sequence[Trial], clip: Clip, codec: str = ""
    ) -> list[TrialResult]:
        """Run once per process what no model has a say in: several checkpoints are read against it."""
        setting = self.protocol.hash(self.simulator, clip) + codec
        known = _REFERENCES.setdefault((name, setting), {})
        missing = [trial for trial in trials if trial.id not in known]
        known.update({result.trial.id: result for result in self.run(policy, missing, clip)})
        return [known[trial.id] for trial in trials]

    def _advance(
        self, policy: Policy, runs: "Sequence[_Run]", clip: Clip, device: torch.device | str
    ) -> None:
        """One forward for all, and what follows from it for each."""
        frames: dict[_Run, Frame] = {}
        for run in (run for run in runs if run.stop_reason is None):
            with run.surviving():
                frames[run] = run.observe()
        if not frames:
            return
        plans = self._plan(policy, list(frames), list(frames.values()), clip, device)
        for run, plan in zip(frames, plans, strict=True):
            with run.surviving():
                run.execute(plan)

    def _plan(
        self,
        policy: Policy,
        runs: "Sequence[_Run]",
        frames: Sequence[Frame],
        clip: Clip,
        device: torch.device | str,
    ) -> "list[_Plan]":
        prompts, names = [run.prompt for run in runs], [run.trial.id for run in runs]
        observation = Observation.from_frames(frames, prompts, names, clip)
        if torch.device(device).type != "cpu":  # moving checks every camera again, a third of a step's cost
            observation = observation.to(device)
        chunk = policy.predict_action(observation)
        if len(chunk.actions) != len(runs):
            raise ValueError(
                f"{type(policy).__name__}.predict_action gave {len(chunk.actions)} rows of actions for "
                f"{len(runs)} observations; it must give one per row"
            )
        return [_Plan.of(chunk, row, run.recorded) for row, run in enumerate(runs)]

    def _pool(self, count: int) -> list[Simulator]:
        while len(self._worlds) < count:
            self._worlds.append(copy.deepcopy(self.simulator))
        return self._worlds[:count]

    def _check_rate(self, clip: Clip) -> None:
        if clip.control_hz != self.simulator.control_hz:
            raise ValueError(
                f"the model's clip counts control steps at {clip.control_hz} Hz, "
                f"{type(self.simulator).__name__} runs at {self.simulator.control_hz} Hz, so its stride of "
                f"{clip.stride} would mean another time; evaluate at the rate the model was trained with"
            )


_REFERENCES: dict[tuple[str, str], dict[str, TrialResult]] = {}


@dataclass(frozen=True)
class _Plan:
    """One row of a chunk, on the CPU."""

    actions: Float[np.ndarray, "a 8"]
    valid: np.ndarray
    dt: float
    imagined: Mapping[str, Tensor]

    @classmethod
    def of(cls, chunk: ActionChunk, row: int, with_pictures: bool) -> "_Plan":
        pictures = (
            {name: video[row].float().cpu() for name, video in chunk.imagined.items()}
            if with_pictures
            else {}
        )
        actions = chunk.actions[row].double().cpu().numpy()
        return cls(actions, chunk.valid[row].cpu().numpy(), chunk.dt, pictures)


class _Run:
    """One trial under way."""

    def __init__(
        self,
        world: Simulator,
        trial: Trial,
        protocol: EvaluationProtocol,
        clip: Clip,
        record: Collection[str],
    ) -> None:
        self.world, self.trial = world, trial
        self.stop_reason: StopReason | None = None
        self.prompt = ""
        self._error: str | None = None
        self._protocol, self._views = protocol, clip.views
        self._budget = max(1, round(protocol.max_seconds * world.control_hz))
        self._steps = self._plans = self._invalid = self._unreached = self._streak = 0
        self._recorder = Recorder(clip, _PICTURES_PER_SECOND) if trial.id in record else None
        self._every = max(1, round(world.control_hz / _PICTURES_PER_SECOND))
        with self.surviving():
            instructions = world.reset(trial)
            self.prompt = instructions[trial.seed % len(instructions)]
            self._last_valid = world.pose()

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """A crash inside ends the trial and nothing else."""
        try:
            yield
        except SimulatorCrash as crash:
            self.stop_reason, self._error = "crash", str(crash)
            log.warning("%s: %s", self.trial.id, crash)

    @property
    def recorded(self) -> bool:
        """Whether pictures are taken."""
        return self._recorder is not None

    def observe(self) -> Frame:
        """What the policy may see now."""
        return self.world.observe(self._views)

    def execute(self, plan: _Plan) -> None:
        """Follow a plan until a new one is wanted or the trial has ended."""
        hz, left = self.world.control_hz, self._budget - self._steps
        actions, valid = hold_invalid(self._last_valid, plan.actions, plan.valid)
        steps = left
        if self._protocol.execution == "receding":
            steps = min(left, control_steps(min(self._protocol.execute_frames, len(actions)), plan.dt, hz))
        poses, targets = commands(self.world.pose(), actions, plan.dt, hz, steps)
        self._plans += 1
        if self._recorder is not None:
            self._recorder.plan(plan.imagined, len(actions), plan.dt)
            if self._plans == 1:
                self._recorder.add(self.observe(), 0.0)
        begun = -1
        for index, (pose, target) in enumerate(zip(poses, targets, strict=True)):
            if target != begun:
                begun = int(target)
                self._enter(actions[begun], bool(valid[begun]))
            if self.stop_reason is None:
                self._step(pose, (index + 1) / hz)
            if self.stop_reason is not None:
                return

    def result(self) -> TrialResult:
        """The finished trial."""
        assert self.stop_reason is not None
        return TrialResult(
            trial=self.trial,
            prompt=self.prompt,
            stop_reason=self.stop_reason,
            steps=self._steps,
            seconds=self._steps / self.world.control_hz,
            plans=self._plans,
            invalid_frames=self._invalid,
            unreached_steps=self._unreached,
            diagnostics={} if self._error else _floats(self.world.diagnostics()),
            recording=None if self._recorder is None or self._error else self._recorder.finish(),
            error=self._error,
        )

    def _enter(self, action: Float[np.ndarray, "8"], valid: bool) -> None:
        """An action of the chunk begins."""
        if valid:
            self._last_valid = action
            return
        self._invalid += 1
        if self._invalid > self._protocol.max_invalid_frames:
            self.stop_reason = "invalid"

    def _step(self, pose: Float[np.ndarray, "8"], since_plan: float) -> None:
        """One control step, and whether it ends the trial."""
        outcome = self.world.step(pose)
        self._steps += 1
        self._unreached += not outcome.reached
        self._streak = 0 if outcome.reached else self._streak + 1
        if outcome.done:
            self.stop_reason = "success" if outcome.success else "failed"
        elif self._streak > self._protocol.max_unreached_streak:
            self.stop_reason = "unreachable"
        elif self._steps >= self._budget:
            self.stop_reason = "timeout"
        if self._recorder is not None and (self._steps % self._every == 0 or self.stop_reason is not None):
            self._recorder.add(self.observe(), since_plan)


def _floats(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}
