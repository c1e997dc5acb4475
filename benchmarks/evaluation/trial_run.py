"""Runs one trial: observes, follows the policy's chunks, and collects the result."""

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
from ai_wam.seams import jump
from ai_wam.types import ActionChunk, Clip, Committed, Observation
from benchmarks.evaluation.command_schedule import CommandSchedule, PlannedActions
from benchmarks.evaluation.controller import control_steps
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.trial_stopping import StopReason, after_action, after_step, outcome_of
from benchmarks.evaluation.trial_video import TrialVideo, VideoRecorder
from benchmarks.simulator import CHANGED, Simulator, SimulatorCrash, Trial

_PICTURES_PER_SECOND = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedChunk:
    """What explains a failure: the timing of a chunk, and action images of its actions that can be commanded.

    Attributes:
        step: control steps made before the chunk was planned.
        seam: the step from which on it is followed; until there an older one's committed actions are.
        dt: seconds between two actions.
        actions: number of actions that can be commanded, from the first on.
        images: their generated action images, 0 to 255; None where the policy generated none, or fewer than
            it has actions.
        cameras: of the images, as they were when the chunk was planned; leading dimension "v".
    """

    step: int
    seam: int
    dt: float
    actions: int
    images: UInt8[Tensor, "v 3 a h w"] | None
    cameras: Cameras


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial.

    Attributes:
        trial: which one.
        prompt: the instruction.
        stop_reason: "success"; "failed" (the goal can no longer be reached); "timeout" (budget spent);
            "invalid" (too many invalid actions); "unreachable" (too many poses in a row without a solution);
            "crash" (the simulator lost the trial, which counts as not solved).
        steps: control steps made.
        seconds: simulated time.
        chunks: chunks that the policy predicted.
        invalid_frames: actions in whose place a pose was held because they are invalid.
        unreached_steps: control steps whose pose inverse kinematics could not follow.
        diagnostics: the simulator's diagnostics at the end.
        video: of the trial, if it was chosen for one.
        error: message of the simulator's crash.
        low_confidence_frames: actions not executed because of their standard deviation: held, or replanned.
        committed_frames: actions, in clip frames, that had been committed when the next chunk was planned.
        seams: for every transition to a new chunk, millimetres and degrees between the old one's next command
            (its motion continued uniformly where it ends) and the new one's for the same control step.
        commands: all that was commanded, and what the last chunk would have commanded next.
        failure: why it failed; see `benchmarks.evaluation.failure_analysis`.
        scene: fingerprint of the scene; empty if there was none.
        position_std: standard deviations of the actions begun, metres; NaN where the policy gives none.
        generated_chunks: every chunk with its action images, until the failure is explained; empty after a
            success.
    """

    trial: Trial
    prompt: str
    stop_reason: StopReason
    steps: int
    seconds: float
    chunks: int
    invalid_frames: int
    unreached_steps: int
    diagnostics: Mapping[str, float]
    video: TrialVideo | None = None
    error: str | None = None
    low_confidence_frames: int = 0
    committed_frames: int = 0
    seams: tuple[tuple[float, float], ...] = ()
    commands: CommandSchedule | None = None
    failure: Mapping[str, Any] | None = None
    scene: str = ""
    position_std: tuple[float, ...] = ()
    generated_chunks: tuple[GeneratedChunk, ...] = ()

    @property
    def success(self) -> bool:
        """Whether the task was solved."""
        return self.stop_reason == "success"

    def to_json(self) -> dict[str, Any]:
        """Everything but the trial's id, its instruction, its video and the generated images."""
        counts = ("invalid_frames", "low_confidence_frames", "committed_frames", "unreached_steps")
        return {
            "outcome": outcome_of(self.stop_reason),
            "stop_reason": self.stop_reason,
            "scene": self.scene,
            **{name: getattr(self, name) for name in ("steps", "seconds", "chunks", *counts)},
            # JSON has no NaN: a diagnostic that does not apply to the trial is null.
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
    """One row of a policy's chunk, on the CPU: its actions, and what was generated with them.

    Attributes:
        planned: the actions.
        generated: videos for the report, in [-1, 1]; empty for trials without a video.
        action_images: one per action, of the views that are present, 0 to 255; None where the policy
            generated none, or fewer than actions.
        cameras: of the present views when the chunk was planned; leading dimension "v".
    """

    planned: PlannedActions
    generated: Mapping[str, Tensor]
    action_images: UInt8[Tensor, "v 3 a h w"] | None
    cameras: Cameras

    @classmethod
    def of(cls, chunk: ActionChunk, observation: Observation, row: int, with_videos: bool) -> "Chunk":
        """Row `row` of a chunk; its action images are kept with and without videos."""
        videos = (
            {name: video[row].float().cpu() for name, video in chunk.generated.items()} if with_videos else {}
        )
        std = None if chunk.position_std is None else chunk.position_std[row].double().cpu().numpy()
        actions = chunk.actions[row].double().cpu().numpy()
        planned = PlannedActions(actions, chunk.valid[row].cpu().numpy(), std, chunk.dt)
        mask = observation.view_mask[row]
        video = chunk.generated.get("action_images")
        images = None
        if video is not None and video.shape[3] >= len(actions):
            images = _bytes(video[row, mask.to(video.device), :, video.shape[3] - len(actions) :])
        return cls(planned, videos, images, observation.cameras[row, mask, -1].to("cpu"))


class TrialRun:
    """A trial that is running in one world (a copy of the simulator).

    Args:
        world: is reset to the trial's scene.
        trial: which one.
        protocol: its rules.
        clip: the policy's views, size and stride.
        videos: ids of the trials that get a video.

    Attributes:
        stop_reason: None while the trial runs.
        prompt: its instruction.
        scene: fingerprint of its scene; empty before there is one.
    """

    def __init__(
        self,
        world: Simulator,
        trial: Trial,
        protocol: EvaluationProtocol,
        clip: Clip,
        videos: Collection[str],
    ) -> None:
        self.world, self.trial = world, trial
        self.stop_reason: StopReason | None = None
        self.prompt = self.scene = ""
        self._error: str | None = None
        self._protocol, self._views, self._stride = protocol, clip.views, clip.stride
        self._latency = ceil(protocol.latency * world.control_hz - 1e-6)  # control steps
        self._budget = max(1, round(protocol.max_seconds * world.control_hz))
        self._steps = self._chunks = self._invalid = self._unreached = self._unreached_streak = 0
        self._low_confidence = self._committed = 0
        self._seams: list[tuple[float, float]] = []
        self._generated_chunks: list[GeneratedChunk] = []
        self._schedule: CommandSchedule | None = None  # from the trial's first step to the last chunk's end
        pictures = (clip, _PICTURES_PER_SECOND, world.control_hz)
        self._recorder = VideoRecorder(*pictures) if trial.id in videos else None
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
        """Context in which a crash of the simulator ends this trial only."""
        try:
            yield
        except SimulatorCrash as crash:
            self.stop_reason, self._error = "crash", str(crash)
            log.warning("%s: %s", self.trial.id, crash)

    @property
    def has_video(self) -> bool:
        """Whether a video of the trial is made."""
        return self._recorder is not None

    def observe(self) -> Frame:
        """The policy's views and the pose now."""
        return self.world.observe(self._views)

    def committed(self) -> Committed:
        """One row: the commands at the clip's frame times that are due while the next chunk is planned."""
        count, stride = self._protocol.prefix, self._stride
        actions, valid = torch.zeros(1, count, 8), torch.zeros(1, count, dtype=torch.bool)
        if self._schedule is not None:
            poses = self._schedule.poses[self._steps + stride - 1 :: stride][:count]
            actions[0, : len(poses)], valid[0, : len(poses)] = torch.from_numpy(poses).float(), True
        return Committed(actions, valid)

    def execute(self, chunk: Chunk) -> None:
        """Follow a chunk until a new one is due or the trial has ended."""
        hz, planned, steps = self.world.control_hz, chunk.planned, self._budget - self._steps
        if self._protocol.execution == "receding":
            frames = min(self._protocol.execute_frames, len(planned.actions))
            steps = min(steps, control_steps(frames, planned.dt, hz))
        whole = max(steps + self._latency, ceil(len(planned.actions) * planned.dt * hz - 1e-6))
        limit = self._protocol.max_position_std
        schedule = CommandSchedule.of(planned, self.world.pose(), self._last_valid, limit, hz, whole)
        seam = self._append(schedule)
        self._chunks += 1
        self._keep_generated(chunk, seam)
        if self._recorder is not None:
            self._recorder.begin_chunk(chunk.generated, planned, self._steps / hz)
            if self._chunks == 1:
                self._recorder.add(self.observe(), 0.0)
        for index in range(steps):
            assert self._schedule is not None
            step = self._schedule[self._steps : self._steps + 1]
            if step.begins[0]:
                if self._must_replan(seam):
                    return
                self._begin_action(step)
            if self.stop_reason is None:
                self._step(step.poses[0], (index + 1) / hz)
            if self.stop_reason is not None:
                return

    def _keep_generated(self, chunk: Chunk, seam: int) -> None:
        """Keep what explains a failure."""
        count = len(chunk.planned.actions)
        if self._protocol.execution == "receding":
            behind = max(self._protocol.prefix, ceil(self._latency / self._stride))
            count = min(count, self._protocol.execute_frames + behind)
        images = None if chunk.action_images is None else chunk.action_images[:, :, :count].clone()
        kept = GeneratedChunk(self._steps, seam, chunk.planned.dt, count, images, chunk.cameras)
        self._generated_chunks.append(kept)

    def _must_replan(self, seam: int) -> bool:
        """Whether to replan instead of beginning an action: it, or the chunk's first one, has low confidence.

        Args:
            seam: the chunk's own first step, whose action always takes its time.
        """
        assert self._schedule is not None
        if self._protocol.low_confidence != "replan" or self._steps <= seam:
            return False
        low = bool(self._schedule.low_confidence[self._steps])
        if not self._protocol.prefix and not self._latency:  # else it counts when it is held
            self._low_confidence += low
        return low or bool(self._schedule.low_confidence[seam])

    def _append(self, fresh: CommandSchedule) -> int:
        """Append a new chunk's commands behind those carried out of the old one; note the jump at the seam.

        Returns:
            The step at which the new chunk takes over.
        """
        old = self._schedule
        if old is None:
            self._schedule = fresh
            return self._steps
        left = len(old) - self._steps
        committed = min(self._protocol.prefix * self._stride, left)
        self._committed += committed // self._stride
        kept = max(committed, min(self._latency, left))
        seam = self._steps + kept
        self._seams.append(jump(old.extrapolated(seam), fresh.poses[min(kept, len(fresh) - 1)]))
        self._schedule = old[:seam].followed_by(fresh[kept:])
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
            chunks=self._chunks,
            invalid_frames=self._invalid,
            unreached_steps=self._unreached,
            diagnostics={} if self._error else _floats(self.world.diagnostics()),
            video=None if self._recorder is None or self._error else self._recorder.finish(self.prompt),
            error=self._error,
            low_confidence_frames=self._low_confidence,
            committed_frames=self._committed,
            seams=tuple(self._seams),
            commands=self._schedule,
            scene=self.scene,
            position_std=self._position_stds(),
            generated_chunks=() if self.stop_reason == "success" else tuple(self._generated_chunks),
        )

    def _position_stds(self) -> tuple[float, ...]:
        """Standard deviation of every action that was begun."""
        if self._schedule is None:
            return ()
        begun = self._schedule[: self._steps]
        return tuple(float(std) for std in begun.position_std[begun.begins])

    def _begin_action(self, step: CommandSchedule) -> None:
        """Count an action of the chunk as begun, and stop the trial if it is one invalid action too many."""
        self._last_valid = step.goals[0]
        self._low_confidence += bool(step.low_confidence[0])
        self._invalid += bool(step.invalid[0])
        self.stop_reason = after_action(bool(step.invalid[0]), self._invalid, self._protocol)

    def _step(self, pose: Float[np.ndarray, "8"], since_plan: float) -> None:
        """Make one control step, which may stop the trial."""
        outcome = self.world.step(pose)
        self._steps += 1
        self._unreached += not outcome.reached
        self._unreached_streak = 0 if outcome.reached else self._unreached_streak + 1
        remaining = self._budget - self._steps
        self.stop_reason = after_step(outcome, self._unreached_streak, remaining, self._protocol)
        if self._recorder is not None and (self._steps % self._every == 0 or self.stop_reason is not None):
            self._recorder.add(self.observe(), since_plan)


def _bytes(video: Float[Tensor, "v 3 t h w"]) -> UInt8[Tensor, "v 3 t h w"]:
    """A video in [-1, 1] as bytes, a quarter of the memory; NaN becomes black."""
    levels = (video.detach().float().cpu().nan_to_num(-1) + 1) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8)


def _floats(diagnostics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in diagnostics.items()}
