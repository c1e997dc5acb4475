"""Figures of an evaluation as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any


def results_table(results: Mapping[str, Any]) -> str:
    """Success by task and arm with 95 % intervals; tasks with a low ceiling below the mean, not in it.

    Args:
        results: content of results.json.
    """
    tasks, arms = results["tasks"], list(results["mean"])
    rows = [["task", "trials", *arms]]
    rows += [_row(name, tasks[name], arms) for name in tasks if name not in results["apart"]]
    mean = [percent(rate) for rate in results["mean"].values()]
    rows.append(["mean over tasks", str(sum(int(row[1]) for row in rows[1:])), *mean])
    low = [_row(name, tasks[name], arms) for name in results["apart"]]
    table = aligned([*rows, *low])
    lines = [*table[: len(rows)], f"protocol {results['protocol_hash'][:16]}"]
    if low:
        lines += ["", apart_title(results["protocol"]), *table[len(rows) :]]
    return "\n".join(lines)


def apart_title(protocol: Mapping[str, Any]) -> str:
    """Why some tasks are listed apart."""
    return f"in no mean: the ceiling is below {percent(protocol['min_ceiling'])}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def percent(rate: float | None) -> str:
    """Whole percents; "none" where there is nothing to average."""
    return "none" if rate is None else f"{100 * rate:.0f} %"


def _row(name: str, summary: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    return [name, str(summary["policy"]["trials"]), *(_rate(summary[arm]) for arm in arms)]


def _rate(figures: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in figures["interval"])
    return f"{percent(figures['rate'])} [{low:.0f}, {high:.0f}]"
