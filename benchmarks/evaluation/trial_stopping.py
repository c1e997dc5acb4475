"""The rules by which a trial stops, and what each reason counts as."""

from typing import Literal

from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.simulator import StepResult

StopReason = Literal["success", "failed", "timeout", "invalid", "unreachable", "crash"]


def outcome_of(reason: str) -> str:
    """The outcome that a stop reason counts as: "success", "failure" or "crash"."""
    return reason if reason in ("success", "crash") else "failure"


def after_action(invalid: bool, count: int, protocol: EvaluationProtocol) -> StopReason | None:
    """The reason to stop a trial as an action begins, which is one invalid action too many; None to continue.

    Args:
        invalid: whether this action is invalid.
        count: invalid actions of the trial, this one included.
        protocol: has the limit.
    """
    return "invalid" if invalid and count > protocol.max_invalid_frames else None


def after_step(
    step: StepResult, unreached: int, remaining: int, protocol: EvaluationProtocol
) -> StopReason | None:
    """The reason to stop a trial after a control step; None to continue.

    Args:
        step: the simulator's result of it.
        unreached: steps in a row, this one included, whose pose inverse kinematics could not follow.
        remaining: steps left of the trial's budget.
        protocol: has the limit of `unreached`.
    """
    if step.done:
        return "success" if step.success else "failed"
    if unreached > protocol.max_unreached_streak:
        return "unreachable"
    return "timeout" if remaining <= 0 else None
