"""Why a trial failed: what was imagined, how it was read, or how it was followed.

A failed trial's commands, and what its last chunk would have commanded next, are replayed in the same scene
without the controller's limits: every command is held until the tool has arrived, however long that takes.

    controller missed   the replay solves the task: the plan was good, the arm did not follow it in time
    decoded wrong       the replay fails, and some action of the plan was invalid (too few or inconsistent
                        blobs) or its position's standard deviation exceeds the limit: the pictures were not
                        read, or could not be
    imagined wrong      the replay fails although every action was decoded surely: the pictures themselves
                        show the wrong way
    unknown             the simulator crashed, in the trial or in its replay

The verdict is a rule, not a measurement: a single vague action makes a failure "decoded wrong", so the counts
it rests on are kept, and beside them how near the plan came to where the expert's demonstration of the same
trial ends, which tells a plan for the wrong object from one that is a centimetre off.
"""

from itertools import islice
from typing import Any, Literal

import numpy as np

from benchmarks.base import Action, Simulator, SimulatorCrash, Trial
from benchmarks.run import TrialResult
from benchmarks.schedule import Schedule, jump

Verdict = Literal["controller missed", "decoded wrong", "imagined wrong", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("imagined wrong", "decoded wrong", "controller missed", "unknown")
MAX_POSITION_STD = 0.02  # metres; the codec's own advice on what not to trust
_ARRIVED = (2.0, 2.0)  # millimetres and degrees
_PATIENCE = 1.0  # seconds for one command, and after the last one


def explain(
    world: Simulator, result: TrialResult, max_position_std: float | None, seconds: float
) -> dict[str, Any] | None:
    """The verdict on a trial, as JSON values; None where it did not fail.

    Args:
        world: replays; any simulator of the trial's kind.
        result: what happened.
        max_position_std: metres, beyond which an action counts as badly decoded; MAX_POSITION_STD if None.
        seconds: longest demonstration of the expert.
    """
    if result.success:
        return None
    if result.stop_reason == "crash" or result.decoded is None:
        return {"verdict": "unknown"}
    limit = MAX_POSITION_STD if max_position_std is None else max_position_std
    plan = result.decoded[result.decoded.begins]
    untrusted = int((plan.invalid | plan.vague | (plan.position_std > limit)).sum())
    try:
        solved = replay(world, result.trial, result.decoded)
        goal = _demonstrated(world, result.trial, seconds)
    except SimulatorCrash as crash:
        return {"verdict": "unknown", "error": str(crash)}
    missed = np.linalg.norm(result.decoded.poses[:, :3] - goal[:3], axis=1).min()
    verdict: Verdict = "controller missed" if solved else "decoded wrong" if untrusted else "imagined wrong"
    return {
        "verdict": verdict,
        "actions": len(plan),
        "untrusted_actions": untrusted,
        "expert_mm": round(1000 * float(missed), 1),
    }


def replay(world: Simulator, trial: Trial, plan: Schedule) -> bool:
    """Whether commands solve a trial if each is held until the tool is there.

    A command is given up after a second, or at once where inverse kinematics has no solution.
    """
    world.reset(trial)
    patience = max(1, round(_PATIENCE * world.control_hz))
    for pose in plan.poses:
        for _ in range(patience):
            outcome = world.step(pose)
            if outcome.done:
                return outcome.success
            if not outcome.reached or _arrived(world, pose):
                break
    outcomes = (world.step(plan.poses[-1]) for _ in range(patience))
    return next((outcome.success for outcome in outcomes if outcome.done), False)


def _arrived(world: Simulator, pose: Action) -> bool:
    distance, angle = jump(world.pose(), pose)
    return distance < _ARRIVED[0] and angle < _ARRIVED[1]


def _demonstrated(world: Simulator, trial: Trial, seconds: float) -> Action:
    """Where the expert's demonstration of a trial ends."""
    world.reset(trial)
    for action in islice(world.demonstrate(), round(seconds * world.control_hz)):
        world.step(action)
    return world.pose()
