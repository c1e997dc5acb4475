"""Results of an evaluation as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any


def results_table(results: Mapping[str, Any]) -> str:
    """Success by task and arm with 95 % intervals; tasks with a low ceiling below the mean, not in it.

    Args:
        results: content of results.json.
    """
    tasks, arms = results["tasks"], list(results["mean"])
    rows = [["task", "trials", *arms]]
    rows += [_row(name, tasks[name], arms) for name in tasks if name not in results["low_ceiling"]]
    mean = [rate_with_interval(results["mean"][arm], results["mean_interval"][arm]) for arm in arms]
    rows.append(["mean over tasks", str(sum(int(row[1]) for row in rows[1:])), *mean])
    low = [_row(name, tasks[name], arms) for name in results["low_ceiling"]]
    table = aligned([*rows, *low])
    lines = [*table[: len(rows)], *notes(results), f"protocol {results['protocol_hash'][:16]}"]
    if low:
        lines += ["", low_ceiling_title(results["protocol"]), *table[len(rows) :]]
    return "\n".join(lines)


def notes(results: Mapping[str, Any]) -> list[str]:
    """Remarks on the rates: intervals, a shift, a missing ceiling, crashes, scenes that differ by arm."""
    summaries, arms = results["tasks"].values(), results["mean"]
    lines = ["95 % intervals: Wilson's; of the mean over these tasks: MOVER from Wilson's"]
    if (shift := results["protocol"].get("shift")) is not None:
        lines.append(f"the scenes of all arms are shifted: {', '.join(shift)}")
    if "ceiling" not in arms:
        lines.append("no ceiling was run: every task is in the mean, also those that allow no success")
    lost = {arm: sum(one["crashes"][arm] for one in summaries) for arm in arms}
    if any(lost.values()):
        counts = ", ".join(f"{arm} {count}" for arm, count in lost.items())
        lines.append(f"lost to crashes of the simulator (not solved; left out of the ceiling): {counts}")
    changed = {arm: sum(one.get("changed_scenes", {}).get(arm, 0) for one in summaries) for arm in arms}
    if any(changed.values()):
        counts = ", ".join(f"{arm} {count}" for arm, count in changed.items())
        lines.append(f"left out, since the simulator did not bring back the scene asked for: {counts}")
    if other := sum(one["other_scenes"] for one in summaries):
        lines.append(f"{other} trials had another scene in some arm, and are left out of the ceiling")
    return lines


def policy_name(policy: Mapping[str, Any]) -> str:
    """The policy's class, and the class of the policy that it wraps, if any."""
    wrapped = policy["config"].get("policy")
    path = wrapped.get("class_path") if isinstance(wrapped, Mapping) else wrapped
    name: str = policy["name"].rpartition(".")[2]
    return f"{name}: {path.rpartition('.')[2]}" if isinstance(path, str) else name


def low_ceiling_title(protocol: Mapping[str, Any]) -> str:
    """Title of the tasks that are listed apart from the mean."""
    return f"in no mean: the ceiling is below {percent(protocol['min_ceiling'])}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of equally wide columns, the first left-aligned and the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def percent(rate: float | None) -> str:
    """A rate in whole percents; "none" where there is nothing to average."""
    return "none" if rate is None else f"{100 * rate:.0f} %"


def rate_with_interval(rate: float | None, interval: Sequence[float] | None) -> str:
    """A rate and the ends of its interval, in whole percents."""
    if interval is None:
        return percent(rate)
    low, high = (100 * end for end in interval)
    return f"{percent(rate)} [{low:.0f}, {high:.0f}]"


def _row(name: str, summary: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    rates = (rate_with_interval(summary[arm]["rate"], summary[arm]["interval"]) for arm in arms)
    return [name, str(summary["policy"]["trials"]), *rates]
