"""Why a trial failed: the action images were generated wrong, decoded wrong, or the controller missed.

First a failed trial's commands, and what its last chunk would have commanded next, are replayed in the same
scene without the controller's limits: every command is held until the tool has arrived, however long that
takes. Where that fails too, every action in force is compared with the pose that the expert's demonstration
of the trial has at that time. An action is off where it was held (invalid, or of too low confidence for the
protocol) or where its pose is more than 25 mm, 15 degrees or half an opening from the expert's. The verdict
is taken from the first chunk with actions that are off, since until then the arm was where the expert was::

    controller missed   the replay solves the task: the actions were good, the arm did not follow them in
                        time; or no action is off, and some pose had no solution
    generated wrong     at least half of the actions that are off have a wrong action image: it does not show
                        every point that the tokenizer draws of the expert's pose, within half a blob's width,
                        or shows the other half of the opening
    decoded wrong       most of them have the right action image, but were held or decoded to another pose
    no action images    the policy generated no action images, or fewer than actions, for that chunk (where
                        nothing is off: for any chunk), so the two cannot be distinguished
    unknown             the simulator crashed, in the trial or in its replay; or nothing is off by that much

The verdict is a rule, not a measurement, so the counts it rests on are kept. Another way or pace than the
expert's counts as wrong here, so the verdicts suit models that imitate it. How near the commands came to
where the expert's demonstration ends separates actions towards the wrong object from those that are a
centimetre off.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.errors import InvalidValue
from ai_wam.seams import jump
from benchmarks.evaluation.command_schedule import CommandSchedule
from benchmarks.evaluation.trial_run import GeneratedChunk, TrialResult
from benchmarks.simulator import Action, Simulator, SimulatorCrash, Trial

Verdict = Literal["generated wrong", "decoded wrong", "controller missed", "no action images", "unknown"]
VERDICTS: tuple[Verdict, ...] = (
    "generated wrong",
    "decoded wrong",
    "controller missed",
    "no action images",
    "unknown",
)
_OFF = (25.0, 15.0)  # millimetres and degrees between a command and the expert's pose
_OPENING = 0.5  # openness between open and closed
_BLOB_WIDTHS = 0.5  # about 25 mm where a picture shows a metre, at any resolution
_ARRIVED = (2.0, 2.0)  # millimetres and degrees
_PATIENCE = 1.0  # seconds for one command, and after the last one


class _OffActions(NamedTuple):
    """Numbers of actions of one chunk that are off, and of those with a right action image (None without)."""

    off: int
    generated_right: int | None


def explain(
    world: Simulator, result: TrialResult, tokenizer: ActionImageTokenizer, seconds: float
) -> dict[str, Any] | None:
    """The verdict on a trial and the counts it rests on, as JSON values; None where it did not fail.

    Args:
        world: a simulator of the trial's kind, in which the commands are replayed.
        result: of the trial, with its generated chunks.
        tokenizer: draws and decodes action images as the policy's does.
        seconds: longest demonstration of the expert, simulated seconds.
    """
    if result.success:
        return None
    if result.stop_reason == "crash" or result.commands is None:
        return {"verdict": "unknown"}
    try:
        solved = replay(world, result.trial, result.commands)
        expert = _demonstrated_poses(world, result.trial, seconds)
    except SimulatorCrash as crash:
        return {"verdict": "unknown", "error": str(crash)}
    missed = np.linalg.norm(result.commands.poses[:, :3] - expert[-1, :3], axis=1).min()
    actions = result.commands[result.commands.begins]
    found = _first_off(result, expert, tokenizer, world.control_hz)
    return {
        "verdict": _verdict(result, solved, found),
        "actions": len(actions),
        "held_actions": int((actions.invalid | actions.low_confidence).sum()),
        "off_actions": found.off,
        "off_but_generated_right": found.generated_right,
        "expert_mm": round(1000 * float(missed), 1),
    }


def replay(world: Simulator, trial: Trial, schedule: CommandSchedule) -> bool:
    """Whether commands solve a trial if each is held until the tool has arrived.

    A command is given up after a second, or at once where inverse kinematics has no solution.
    """
    world.reset(trial)
    patience = max(1, round(_PATIENCE * world.control_hz))
    for pose in schedule.poses:
        for _ in range(patience):
            outcome = world.step(pose)
            if outcome.done:
                return outcome.success
            if not outcome.reached or _arrived(world, pose):
                break
    outcomes = (world.step(schedule.poses[-1]) for _ in range(patience))
    return next((outcome.success for outcome in outcomes if outcome.done), False)


def _verdict(result: TrialResult, solved: bool, found: _OffActions) -> Verdict:
    if solved:
        return "controller missed"
    if found.generated_right is None:
        return "no action images"
    if not found.off:
        return "controller missed" if result.unreached_steps else "unknown"
    return "decoded wrong" if 2 * found.generated_right > found.off else "generated wrong"


def _first_off(
    result: TrialResult, expert: Float[np.ndarray, "n 8"], tokenizer: ActionImageTokenizer, control_hz: float
) -> _OffActions:
    """Counts for the first chunk of which an action is off.

    Raises:
        ValueError: a result whose chunks were not kept.
    """
    if result.commands is None or len(result.generated_chunks) != result.chunks:
        raise InvalidValue(
            f"explain: {result.trial.id} has {result.chunks} chunks, of which {len(result.generated_chunks)} "
            "are kept; give results as Benchmark.run returns them"
        )
    for chunk, actions, steps in _in_force(result.generated_chunks, len(result.commands), control_hz):
        truth = expert[np.minimum(steps + 1, len(expert) - 1)]  # number 0 is the pose before any step
        off = _off(result.commands, steps, truth)
        if off.any():
            right = _right_images(chunk, actions, truth, tokenizer)
            return _OffActions(int(off.sum()), None if right is None else int((off & right).sum()))
    return _OffActions(0, None if any(chunk.images is None for chunk in result.generated_chunks) else 0)


def _in_force(
    chunks: Sequence[GeneratedChunk], steps: int, control_hz: float
) -> Iterator[tuple[GeneratedChunk, Int[np.ndarray, "m"], Int[np.ndarray, "m"]]]:
    """Every chunk, its actions that were or would next have been commanded, and the steps they are due at."""
    ends = [*(chunk.seam for chunk in chunks[1:]), steps]
    for chunk, end in zip(chunks, ends, strict=True):
        actions = np.arange(chunk.actions)
        due = chunk.step - 1 + np.floor((actions + 1) * chunk.dt * control_hz + 1e-6).astype(int)
        within = (due >= chunk.seam) & (due < end)
        yield chunk, actions[within], due[within]


def _off(
    commands: CommandSchedule, steps: Int[np.ndarray, "m"], truth: Float[np.ndarray, "m 8"]
) -> Bool[np.ndarray, "m"]:
    """Whether actions were held, or differ from the expert's."""
    poses = commands.poses[steps]
    jumps = np.array([jump(pose, wanted) for pose, wanted in zip(poses, truth, strict=True)]).reshape(-1, 2)
    apart = (jumps > _OFF).any(axis=1) | (abs(poses[:, 7] - truth[:, 7]) > _OPENING)
    return np.asarray(apart | commands.invalid[steps] | commands.low_confidence[steps])


def _right_images(
    chunk: GeneratedChunk,
    actions: Int[np.ndarray, "m"],
    truth: Float[np.ndarray, "m 8"],
    tokenizer: ActionImageTokenizer,
) -> Bool[np.ndarray, "m"] | None:
    """Whether action images show what the tokenizer draws of the expert's poses; None without images."""
    if chunk.images is None:
        return None
    images = chunk.images[:, :, actions][None]
    cameras = chunk.cameras.map(lambda matrix: matrix[None, :, None].expand(-1, -1, len(actions), -1, -1))
    size = (images.shape[-2], images.shape[-1])
    drawn = tokenizer.encode(torch.from_numpy(truth).float()[None], cameras, size)
    wanted, found = tokenizer.decode(drawn, cameras), tokenizer.decode(images, cameras)
    visible = wanted.pixels.isfinite().all(dim=-1)
    # A point that was not found is NaN, which compares as not near.
    near = (found.pixels - wanted.pixels).norm(dim=-1) <= _BLOB_WIDTHS * tokenizer.blob_std * min(size)
    gap = (found.actions - wanted.actions)[0, :, 7].abs()
    return np.asarray((near | ~visible).all(dim=3).all(dim=1)[0] & ~(gap > _OPENING))


def _arrived(world: Simulator, pose: Action) -> bool:
    distance, angle = jump(world.pose(), pose)
    return distance < _ARRIVED[0] and angle < _ARRIVED[1]


def _demonstrated_poses(world: Simulator, trial: Trial, seconds: float) -> Float[np.ndarray, "n 8"]:
    """The poses of the expert's demonstration of a trial: its first one, and one after every step."""
    world.reset(trial)
    poses = [world.pose()]
    for action in islice(world.demonstrate(), round(seconds * world.control_hz)):
        world.step(action)
        poses.append(world.pose())
    return np.stack(poses)
