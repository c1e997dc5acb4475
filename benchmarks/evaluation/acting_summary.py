"""How a policy acts, for results.json and the report: why trials failed, seams, confidence."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.evaluation.failure_analysis import VERDICTS
from benchmarks.evaluation.std_threshold import cells, curve
from benchmarks.evaluation.trial_run import TrialResult


def acting_summary(runs: Sequence[TrialResult]) -> dict[str, Any]:
    """Figures of one task: failures by verdict, held actions, jumps between chunks (None without a seam)."""
    verdicts = [run.failure["verdict"] for run in runs if run.failure is not None]
    seams = {
        f"seam_{unit}": [seam[i] for run in runs for seam in run.seams]
        for i, unit in enumerate(("mm", "degrees"))
    }
    return {
        "failures": {verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts},
        "vague_frames": sum(run.vague_frames for run in runs),
        **{
            name: {"mean": sum(jumps) / len(jumps), "max": max(jumps)} if jumps else None
            for name, jumps in seams.items()
        },
    }


def acting(results: Mapping[str, Any]) -> str:
    """Tables for the report."""
    tasks = [_task(name, summary) for name, summary in results["tasks"].items()]
    head = ("task", *VERDICTS, "not executed, vague", "seam, mean and largest (mm)", "(degrees)")
    rows = curve(results)
    parts = [_table("Failures and seams", head, tasks)]
    if rows:
        head = ("largest standard deviation (mm)", "solved of the trials below it", "and above it")
        parts.append(_table("Success against confidence", head, [cells(row) for row in rows]))
    return "".join(parts)


def _task(name: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    failures = [str(summary["failures"].get(verdict, 0)) for verdict in VERDICTS]
    seams = [summary[f"seam_{unit}"] for unit in ("mm", "degrees")]
    jumps = ["none" if seam is None else f"{seam['mean']:.1f}, {seam['max']:.1f}" for seam in seams]
    return (name, *failures, str(summary["vague_frames"]), *jumps)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line("th", head), *(_line("td", row) for row in rows)]
    table = f'<div class="scroll"><table>{"".join(lines)}</table></div>'
    return f'<div class="task"><h3>{escape(title)}</h3>{table}</div>'


def _line(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"
