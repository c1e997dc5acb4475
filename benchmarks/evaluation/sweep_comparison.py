"""Two sweeps over the same points, paired trial by trial at each of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ai_wam.errors import InvalidValue
from benchmarks.evaluation.comparison import HEADER, Paired, check_same_protocol, paired
from benchmarks.evaluation.results import read_results
from benchmarks.evaluation.sweep import read_sweep
from benchmarks.report.text_tables import aligned


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: p-values that bound the chance of any false finding among all of them.

    The smallest is multiplied by their number, the next by one less, and so on; none is smaller than one
    before it, and none exceeds 1 (S. Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def sweep_comparison(first: Path, second: Path) -> str:
    """Successes of two policies at every point, how many only one side solved, and McNemar's p after Holm.

    Args:
        first: a sweep.json, and
        second: another of the same points; the points' results lie beside each.

    Raises:
        ValueError: other points, or points of another shift or protocol.
    """
    sweeps = read_sweep(first), read_sweep(second)
    names = _common_points(*sweeps)
    pairs = {name: _pair(first.parent / name, second.parent / name) for name in names}
    adjusted = holm([pair.p for pair in pairs.values()])
    rows = [["point", *HEADER[1:], "p (Holm)"]]
    rows += [[*pairs[name].row(name), f"{p:.3g}"] for name, p in zip(names, adjusted, strict=True)]
    lines = [
        f"{mark}: {sweep['checkpoint']}  {sweep['created']}" for mark, sweep in zip("ab", sweeps, strict=True)
    ]
    return "\n".join(
        [
            *lines,
            "",
            *aligned(rows),
            "",
            "p: McNemar's exact test, two-sided; only trials that exactly one of the two solved count",
            f"p (Holm): adjusted for the {len(names)} points",
        ]
    )


def _common_points(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the points, the same on both sides."""
    points = [{point["name"]: point["shifted"] for point in sweep["results"]} for sweep in (first, second)]
    if alone := sorted(set(points[0]) ^ set(points[1])):
        raise InvalidValue(
            f"these sweeps do not compare: points {alone} are finished in one of them only; run both "
            "over the same --points to the end"
        )
    if other := [name for name, shift in points[0].items() if points[1][name] != shift]:
        raise InvalidValue(
            f"these sweeps do not compare: point {other[0]!r} is the shift {points[0][other[0]]} in one and "
            f"{points[1][other[0]]} in the other; run both over the same --points"
        )
    if not points[0]:
        raise InvalidValue("these sweeps do not compare: no point is finished in either")
    return list(points[0])


def _pair(first: Path, second: Path) -> Paired:
    """A point's outcomes, of the tasks whose ceiling is not low on either side."""
    one, other = (read_results(folder / "results.json") for folder in (first, second))
    check_same_protocol(one, other)
    low = {*one["low_ceiling"], *other["low_ceiling"]}
    counted = [name for name in one["tasks"] if name not in low]
    if not counted:
        raise InvalidValue(f"{first.name}: the ceiling of every task is low here, so nothing is compared")
    return paired(one, other, counted)
