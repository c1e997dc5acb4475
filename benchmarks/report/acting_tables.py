"""Tables of the report on how a policy acts: reasons of failures, seams, confidence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.evaluation.failure_analysis import VERDICTS
from benchmarks.evaluation.success_against_std import cells, curve

_SEAMS = ("task", *VERDICTS, "not executed, low confidence", "seam, mean and largest (mm)", "(degrees)")
_CONFIDENCE = ("largest standard deviation (mm)", "solved of the trials below it", "and above it")


class Table(NamedTuple):
    """A table: its title, the cells of its head, and of its rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def acting_tables(results: Mapping[str, Any]) -> list[Table]:
    """Failures and seams by task; success against confidence where the policy gives standard deviations.

    Args:
        results: content of results.json.
    """
    tables = [
        Table("Failures and seams", _SEAMS, [_row(name, task) for name, task in results["tasks"].items()])
    ]
    if rows := curve(results):
        tables.append(Table("Success against confidence", _CONFIDENCE, list(map(cells, rows))))
    return tables


def _row(name: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    failures = [str(summary["failures"].get(verdict, 0)) for verdict in VERDICTS]
    seams = [summary[f"seam_{unit}"] for unit in ("mm", "degrees")]
    jumps = ["none" if seam is None else f"{seam['mean']:.1f}, {seam['max']:.1f}" for seam in seams]
    return (name, *failures, str(summary["low_confidence_frames"]), *jumps)
