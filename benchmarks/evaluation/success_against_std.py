"""Success against a limit on decoded standard deviations, from one run.

    python -m benchmarks.evaluation.success_against_std results.json

A trial whose actions all stayed below a limit would have had the same course with that limit in force
(`max_position_std` of the protocol), so its outcome needs no second run. The table has the number of such
trials, how many of them succeed, and how many of the others, where the limit would have held the arm. An
informative confidence separates the two.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.confidence_intervals import Proportion

_ROWS = 8


@dataclass(frozen=True)
class Row:
    """Outcomes of trials below and above one limit.

    Attributes:
        limit: metres per axis.
        below: outcomes of the trials that never exceeded it; at least one.
        above: outcomes of the others; None if there are none.
    """

    limit: float
    below: Proportion
    above: Proportion | None


def curve(results: Mapping[str, Any], rows: int = _ROWS) -> list[Row]:
    """Success of the policy's trials below and above limits that divide them evenly.

    Args:
        results: content of results.json.
        rows: at most so many limits.

    Returns:
        From the strictest limit to the largest standard deviation met; empty for a policy that gives none, or
        only zeros. Trials without a valid action are left out.
    """
    outcomes = [
        (max(stds), trial["policy"]["outcome"] == "success")
        for trial in results["trials"]
        if (stds := [std for std in trial["policy"]["position_std"] if std is not None])
    ]
    worst = sorted(std for std, _ in outcomes)
    if not any(worst):
        return []
    picked = np.linspace(0, len(worst), min(rows, len(worst)) + 1).round().astype(int)[1:] - 1
    return [_row(limit, outcomes) for limit in dict.fromkeys(worst[index] for index in picked)]


def _row(limit: float, outcomes: list[tuple[float, bool]]) -> Row:
    below = [success for std, success in outcomes if std <= limit]
    above = [success for std, success in outcomes if std > limit]
    return Row(limit, Proportion.of(below), Proportion.of(above) if above else None)


def cells(row: Row) -> tuple[str, str, str]:
    """Cells of a row: the limit in mm, successes below it with their interval, and above it."""
    low, high = (100 * end for end in row.below.interval)
    below = f"{row.below.successes}/{row.below.trials} [{low:.0f}, {high:.0f}] %"
    above = "none" if row.above is None else f"{row.above.successes}/{row.above.trials}"
    return f"{1000 * row.limit:.2f}", below, above


def main() -> None:
    """Print the table of a results file."""
    parser = argparse.ArgumentParser(description="Success against a limit on decoded standard deviations.")
    parser.add_argument("results", type=Path, help="results.json of a test")
    found = curve(json.loads(parser.parse_args().results.read_text(encoding="utf-8")))
    if not found:
        raise SystemExit(
            "no trial has standard deviations: the policy gives none or zeros, or every action was invalid"
        )
    print(f"{'limit (mm)':>10}  {'solved below it':>24}  {'solved above it':>15}")
    for limit, below, above in map(cells, found):
        print(f"{limit:>10}  {below:>24}  {above:>15}")


if __name__ == "__main__":
    main()
