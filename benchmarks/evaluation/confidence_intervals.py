"""Confidence intervals of success rates: Wilson's for one task, MOVER's for the mean of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from ai_wam.errors import InvalidValue

_Z_95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Proportion:
    """Successes among trials.

    Attributes:
        successes: how many trials succeeded.
        trials: how many were run.
    """

    successes: int
    trials: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.trials or self.trials < 1:
            raise InvalidValue(f"{self}: a proportion needs 0 <= successes <= trials and at least one trial")

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> "Proportion":
        """Count the successes."""
        return cls(sum(outcomes), len(outcomes))

    @property
    def rate(self) -> float:
        """Share of successes, in [0, 1]."""
        return self.successes / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `wilson`."""
        return wilson(self.successes, self.trials)

    def to_json(self) -> dict[str, object]:
        """`successes`, `trials`, `rate` and `interval`."""
        return {
            "successes": self.successes,
            "trials": self.trials,
            "rate": self.rate,
            "interval": list(self.interval),
        }


def wilson(successes: int, trials: int, z: float = _Z_95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): sensible for few trials and at 0 % and 100 %.

    Args:
        successes: number of successes.
        trials: number of trials, at least 1.
        z: normal quantile; the default gives 95 % coverage.
    """
    p, shrink = successes / trials, 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z / shrink * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # At the ends the formula gives 0 and 1 exactly; rounding must not put the rate outside its own interval.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def mean_interval(strata: Sequence[Proportion]) -> tuple[float, float]:
    """95 % interval of the unweighted mean of independent proportions.

    Each one's Wilson interval gives its distance to either end, and the distances add up as the roots of
    their squares (MOVER: Zou and Donner 2008), so rates of 0 and 1 keep their width and one stratum's
    interval is Wilson's own. The interval holds for these strata, not for tasks that were not run.
    """
    count, mean = len(strata), sum(one.rate for one in strata) / len(strata)
    below = sum((one.rate - one.interval[0]) ** 2 for one in strata)
    above = sum((one.interval[1] - one.rate) ** 2 for one in strata)
    return mean - sqrt(below) / count, mean + sqrt(above) / count
