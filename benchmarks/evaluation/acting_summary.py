"""Summary of how a policy acted, for results.json: failures by verdict, held actions, seams."""

from collections.abc import Sequence
from typing import Any

from benchmarks.evaluation.failure_analysis import VERDICTS
from benchmarks.evaluation.trial_run import TrialResult


def acting_summary(runs: Sequence[TrialResult]) -> dict[str, Any]:
    """Of one task: failures by verdict, held actions, jumps between chunks (None without a seam)."""
    verdicts = [run.failure["verdict"] for run in runs if run.failure is not None]
    seams = {
        f"seam_{unit}": [seam[i] for run in runs for seam in run.seams]
        for i, unit in enumerate(("mm", "degrees"))
    }
    return {
        "failures": {verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts},
        "low_confidence_frames": sum(run.low_confidence_frames for run in runs),
        **{
            name: {"mean": sum(jumps) / len(jumps), "max": max(jumps)} if jumps else None
            for name, jumps in seams.items()
        },
    }
