"""One trial under way, and how it went."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ai_wam.cameras import Cameras
from ai_wam.episodes import Frame
from ai_wam.types import ActionChunk, Clip, Committed, Observation
from benchmarks.evaluation.command_schedule import Plan, Schedule, jump
from benchmarks.evaluation.controller import control_steps
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.trial_recording import Recorder, Recording
from benchmarks.evaluation.trial_stopping import StopReason, after_action, after_step, outcome_of
from benchmarks.simulator import CHANGED, Simulator, SimulatorCrash, Trial

_PICTURES_PER_SECOND = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictured:
    """A chunk of a trial, and the action images of those of its actions that can be commanded.

    Attributes:
        step: control steps made before it was planned.
        seam: the step from which on it is followed; until there an older one's committed actions are.
        dt: seconds between two actions.
        actions: how many can be commanded, from the first on.
        images: of those; None where the policy pictured none, or fewer than it has actions.
        cameras: of the images, where they stood when the chunk was planned.
    """

    step: int
    seam: int
    dt: float
    actions: int
    images: UInt8[Tensor, "v 3 a h w"] | None
    cameras: Cameras


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
        vague_frames: actions not executed because of their standard deviation: held, or planned anew.
        committed_frames: actions, in clip frames, that had been committed when the next chunk was planned.
        seams: wherever a chunk gave way to the next, millimetres and degrees between the command with which
            the old one would have gone on (in uniform motion where it ends) and the new one's for the same
            control step.
        decoded: all that was commanded, and what the last chunk would have commanded next.
        failure: why it failed; see `benchmarks.evaluation.failure_analysis`.
        scene: fingerprint of the scene; empty if there was none.
        position_std: standard deviations of the actions begun, metres; NaN where the policy gives none.
        pictured: every chunk's action images, until the failure is explained; empty after a success.
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
    vague_frames: int = 0
    committed_frames: int = 0
    seams: tuple[tuple[float, float], ...] = ()
    decoded: Schedule | None = None
    failure: Mapping[str, Any] | None = None
    scene: str = ""
    position_std: tuple[float, ...] = ()
    pictured: tuple[Pictured, ...] = ()

    @property
    def success(self) -> bool:
        """Whether the task was solved."""
        return self.stop_reason == "success"

    def to_json(self) -> dict[str, Any]:
        """Everything but the trial's name, its instruction and the pictures."""
        counts = ("invalid_frames", "vague_frames", "committed_frames", "unreached_steps")
        return {
            "outcome": outcome_of(self.stop_reason),
            "stop_reason": self.stop_reason,
            "scene": self.scene,
            **{name: getattr(self, name) for name in ("steps", "seconds", "plans", *counts)},
            # JSON has no NaN: a figure that does not apply to the trial is null.
            "diagnostics": {
                name: value if isfinite(value) else None for name, value in self.diagnostics.items()
            },
            "seams": {
                unit: [round(seam[i], 3) for seam in self.seams] for i, unit in enumerate(("mm", "degrees"))
            },
            "position_std": [round(std, 6) if isfinite(std) else None for std in self.position_std],
            **({} if self.error is None else {"error": self.error}),
            **({} if self.failure is None else {"failure": dict(self.failure)}),
        }


@dataclass(frozen=True)
class Chunk:
    """One row of a policy's chunk, on the CPU: what to do, and what was pictured."""

    plan: Plan
    generated: Mapping[str, Tensor]
    action_images: UInt8[Tensor, "v 3 a h w"] | None
    cameras: Cameras

    @classmethod
    def of(cls, chunk: ActionChunk, observation: Observation, row: int, with_pictures: bool) -> "Chunk":
        """Row `row`; action images, one per action of the views there are, are kept in any case."""
        pictures = (
            {name: video[row].float().cpu() for name, video in chunk.generated.items()}
            if with_pictures
            else {}
        )
        std = None if chunk.position_std is None else chunk.position_std[row].double().cpu().numpy()
        actions = chunk.actions[row].double().cpu().numpy()
        plan = Plan(actions, chunk.valid[row].cpu().numpy(), std, chunk.dt)
        mask = observation.view_mask[row]
        video = chunk.generated.get("action_images")
        images = None
        if video is not None and video.shape[3] >= len(actions):
            images = _bytes(video[row, mask.to(video.device), :, video.shape[3] - len(actions) :])
        return cls(plan, pictures, images, observation.cameras[row, mask, -1].to("cpu"))


class Run:
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
        self.prompt = self.scene = ""
        self._error: str | None = None
        self._protocol, self._views, self._stride = protocol, clip.views, clip.stride
        self._budget = max(1, round(protocol.max_seconds * world.control_hz))
        self._steps = self._plans = self._invalid = self._unreached = self._streak = 0
        self._vague = self._committed = 0
        self._seams: list[tuple[float, float]] = []
        self._pictured: list[Pictured] = []
        self._schedule: Schedule | None = None  # from the trial's first step to the last chunk's end
        self._recorder = Recorder(clip, _PICTURES_PER_SECOND) if trial.id in record else None
        self._every = max(1, round(world.control_hz / _PICTURES_PER_SECOND))
        with self.surviving():
            instructions = world.reset(trial)
            self.prompt = instructions[trial.seed % len(instructions)]
            self.scene, self._last_valid = world.scene(), world.pose()
            if self.scene.startswith(CHANGED):
                raise SimulatorCrash(
                    f"the simulator did not bring the trial's scene back: it is {self.scene}, another than "
                    "was demonstrated"
                )

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

    def committed(self) -> Committed:
        """One row: what will be commanded at the clip's frame times while the next chunk is planned."""
        count, stride = self._protocol.prefix, self._stride
        actions, valid = torch.zeros(1, count, 8), torch.zeros(1, count, dtype=torch.bool)
        if self._schedule is not None:
            poses = self._schedule.poses[self._steps + stride - 1 :: stride][:count]
            actions[0, : len(poses)], valid[0, : len(poses)] = torch.from_numpy(poses).float(), True
        return Committed(actions, valid)

    def execute(self, chunk: Chunk) -> None:
        """Follow a chunk until a new one is wanted or the trial has ended."""
        hz, plan, steps = self.world.control_hz, chunk.plan, self._budget - self._steps
        if self._protocol.execution == "receding":
            frames = min(self._protocol.execute_frames, len(plan.actions))
            steps = min(steps, control_steps(frames, plan.dt, hz))
        whole = max(steps, ceil(len(plan.actions) * plan.dt * hz - 1e-6))
        limit = self._protocol.max_position_std
        seam = self._follow(Schedule.of(plan, self.world.pose(), self._last_valid, limit, hz, whole))
        self._plans += 1
        self._keep(chunk, seam)
        if self._recorder is not None:
            self._recorder.plan(chunk.generated, len(plan.actions), plan.dt)
            if self._plans == 1:
                self._recorder.add(self.observe(), 0.0)
        for index in range(steps):
            assert self._schedule is not None
            step = self._schedule[self._steps : self._steps + 1]
            if step.begins[0]:
                if self._replans(seam):
                    return
                self._enter(step)
            if self.stop_reason is None:
                self._step(step.poses[0], (index + 1) / hz)
            if self.stop_reason is not None:
                return

    def _keep(self, chunk: Chunk, seam: int) -> None:
        """Of a chunk, what explains a failure."""
        count = len(chunk.plan.actions)
        if self._protocol.execution == "receding":
            count = min(count, self._protocol.execute_frames + self._protocol.prefix)
        images = None if chunk.action_images is None else chunk.action_images[:, :, :count].clone()
        self._pictured.append(Pictured(self._steps, seam, chunk.plan.dt, count, images, chunk.cameras))

    def _replans(self, seam: int) -> bool:
        """Whether to plan again instead of beginning an action: it is vague, or is behind a vague first one.

        Args:
            seam: the chunk's own first step, whose action always takes its time.
        """
        assert self._schedule is not None
        if self._protocol.vague != "replan" or self._steps <= seam:
            return False
        vague = bool(self._schedule.vague[self._steps])
        if not self._protocol.prefix:  # else it is committed, and counts when it is held
            self._vague += vague
        return vague or bool(self._schedule.vague[seam])

    def _follow(self, fresh: Schedule) -> int:
        """Go on with a new chunk behind what is committed of the old one; note the jump between the two.

        Returns:
            The step at which the new chunk takes over.
        """
        old = self._schedule
        if old is None:
            self._schedule = fresh
            return self._steps
        kept = min(self._protocol.prefix * self._stride, len(old) - self._steps)
        self._committed += kept // self._stride
        seam = self._steps + kept
        self._seams.append(jump(old.going_on(seam), fresh.poses[min(kept, len(fresh) - 1)]))
        self._schedule = old[:seam].then(fresh[kept:])
        return seam

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
            vague_frames=self._vague,
            committed_frames=self._committed,
            seams=tuple(self._seams),
            decoded=self._schedule,
            scene=self.scene,
            position_std=self._stds(),
            pictured=() if self.stop_reason == "success" else tuple(self._pictured),
        )

    def _stds(self) -> tuple[float, ...]:
        if self._schedule is None:
            return ()
        begun = self._schedule[: self._steps]
        return tuple(float(std) for std in begun.position_std[begun.begins])

    def _enter(self, step: Schedule) -> None:
        """An action of the chunk begins."""
        self._last_valid = step.goals[0]
        self._vague += bool(step.vague[0])
        self._invalid += bool(step.invalid[0])
        self.stop_reason = after_action(bool(step.invalid[0]), self._invalid, self._protocol)

    def _step(self, pose: Float[np.ndarray, "8"], since_plan: float) -> None:
        """One control step, and whether it ends the trial."""
        outcome = self.world.step(pose)
        self._steps += 1
        self._unreached += not outcome.reached
        self._streak = 0 if outcome.reached else self._streak + 1
        self.stop_reason = after_step(outcome, self._streak, self._budget - self._steps, self._protocol)
        if self._recorder is not None and (self._steps % self._every == 0 or self.stop_reason is not None):
            self._recorder.add(self.observe(), since_plan)


def _bytes(video: Float[Tensor, "v 3 t h w"]) -> UInt8[Tensor, "v 3 t h w"]:
    """Video in [-1, 1] in a quarter of the memory; NaN shows nothing."""
    levels = (video.detach().float().cpu().nan_to_num(-1) + 1) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8)


def _floats(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}
