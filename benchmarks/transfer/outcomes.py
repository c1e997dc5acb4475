"""What a study has found so far: success by training, seed and point, and what the confidence said."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.comparison import Paired, check_same_protocol, paired
from benchmarks.evaluation.confidence_intervals import Proportion
from benchmarks.evaluation.results import read_results
from benchmarks.evaluation.sweep import FILE, read_sweep
from benchmarks.simulators.tabletop import camera_rigs as rigs
from benchmarks.transfer.study import TRAININGS, run_name

_FRONT, _SHOULDER = (rigs.azimuth(view) for view in ("front", "left_shoulder"))
_APART = _SHOULDER - _FRONT  # degrees of azimuth between the cameras of the study
_BINS = 6  # of trials by their confidence


@dataclass(frozen=True)
class Rate:
    """Success of one training at one point, over seeds.

    Attributes:
        by_seed: rates in [0, 1].
        ceiling: the lowest of the seeds' ceilings.
        floor: the highest of the seeds' blind floors.
    """

    by_seed: tuple[float, ...]
    ceiling: float
    floor: float

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.by_seed) / len(self.by_seed)

    def __str__(self) -> str:
        """Mean, and least and largest where there are several seeds, in percent."""
        low, high = (f"{100 * end:.0f}" for end in (min(self.by_seed), max(self.by_seed)))
        spread = f" ({low} to {high})" if len(self.by_seed) > 1 and low != high else ""
        return f"{100 * self.mean:.0f}{spread}"


@dataclass(frozen=True)
class Confidence:
    """Trials sorted by the median standard deviation of their executed actions, surest first.

    Attributes:
        bins: of equal size: the largest median within, metres, infinite where most actions were not valid;
            and how many trials succeeded.
        separation: chance that a trial that succeeded was surer than one that failed; 1/2 says nothing.
    """

    bins: tuple[tuple[float, Proportion], ...]
    separation: float


class Outcomes:
    """The results in a study's folder.

    Args:
        folder: of the study.
        seeds: that are looked for; those not finished are left out.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.folder, self.seeds = folder, tuple(seeds)

    def seeds_of(self, training: str) -> list[int]:
        """Seeds whose test is finished."""
        return [
            seed
            for seed in self.seeds
            if (self.folder / "jobs" / f"test-{run_name(training, seed)}.json").is_file()
        ]

    def points(self, training: str) -> dict[str, Rate]:
        """Success by point of the sweep, in its order; by task where the test was no sweep."""
        found: dict[str, list[tuple[float, float, float]]] = {}
        for seed in self.seeds_of(training):
            for name, rates in self._rates(training, seed):
                found.setdefault(name, []).append(rates)
        return {
            name: Rate(
                tuple(one[0] for one in each), min(one[1] for one in each), max(one[2] for one in each)
            )
            for name, each in found.items()
        }

    def _rates(self, training: str, seed: int) -> Iterator[tuple[str, tuple[float, float, float]]]:
        """Rates of policy, ceiling and blind floor by point or task."""
        place = self.place(training, seed)
        if TRAININGS[training].points is not None:
            for point in read_sweep(place / FILE)["results"]:
                yield point["name"], _rates_of(list(point["tasks"].values()))
        else:
            for name, task in read_results(place / "results.json")["tasks"].items():
                yield name, _rates_of([task])

    def place(self, training: str, seed: int) -> Path:
        """The folder of a test's results."""
        return self.folder / "results" / run_name(training, seed)

    def by_angle(
        self, training: str, point: str, limit: float
    ) -> tuple[Proportion | None, Proportion | None]:
        """Successes where the two cameras are less than an angle apart, about the workspace, and elsewhere.

        Args:
            training: whose trials.
            point: of a shift that turns both cameras.
            limit: degrees of azimuth.

        Returns:
            None for a part without trials.
        """
        parts: tuple[list[bool], list[bool]] = ([], [])
        for seed in self.seeds_of(training):
            for trial in self._results(training, seed, point)["trials"]:
                turned = [values["azimuth"] for values in trial["shift"]["cameras"]["views"].values()]
                apart = abs((_APART + turned[1] - turned[0] + 180) % 360 - 180)
                parts[apart >= limit].append(trial["policy"]["outcome"] == "success")
        near, far = (Proportion.of(part) if part else None for part in parts)
        return near, far

    def _results(self, training: str, seed: int, point: str) -> Mapping[str, Any]:
        return read_results(self.place(training, seed) / point / "results.json")

    def paired(self, first: str, second: str, points: Sequence[str]) -> tuple[int, int, float]:
        """How many trials only one of two trainings solved, and McNemar's p, over seeds that both have.

        Raises:
            ValueError: tests of different protocols, as another version of a simulator makes them.
        """
        both = [seed for seed in self.seeds_of(first) if seed in self.seeds_of(second)]
        found: list[Paired] = []
        for seed in both:
            for point in points:
                one, other = (self._results(training, seed, point) for training in (first, second))
                check_same_protocol(one, other)
                found.append(paired(one, other, list(one["tasks"])))
        every = Paired(
            tuple(won for each in found for won in each.first),
            tuple(won for each in found for won in each.second),
        )
        return every.only_first, every.only_second, every.p

    def doubts(self, training: str, point: str) -> tuple[float, float]:
        """Share of actions that were not valid, and the median standard deviation of the others, metres."""
        stds = [std for trial in self._policies(training, [point]) for std in trial["position_std"]]
        known = [std for std in stds if std is not None]
        invalid = sum(std is None for std in stds) / max(1, len(stds))
        return invalid, float(np.median(known)) if known else float("nan")

    def confidence(self, training: str, points: Sequence[str]) -> Confidence:
        """Success by confidence, over all trials of some points."""
        trials = self._policies(training, points)
        doubt = np.array([_doubt(one["position_std"]) for one in trials])
        won = np.array([one["outcome"] == "success" for one in trials])
        order = np.argsort(doubt, kind="stable")
        bins = [
            (float(doubt[part].max()), Proportion.of(won[part].tolist()))
            for part in np.array_split(order, min(_BINS, len(order)))
        ]
        return Confidence(tuple(bins), _separation(doubt[won], doubt[~won]))

    def _policies(self, training: str, points: Sequence[str]) -> list[Mapping[str, Any]]:
        return [
            trial["policy"]
            for seed in self.seeds_of(training)
            for point in points
            for trial in self._results(training, seed, point)["trials"]
        ]

    @cached_property
    def finished(self) -> list[str]:
        """Trainings of which any seed is tested."""
        return [name for name in TRAININGS if self.seeds_of(name)]


def _doubt(stds: Sequence[float | None]) -> float:
    """The median standard deviation of a trial's actions; infinite for those that were not valid."""
    return float(np.median([np.inf if std is None else std for std in stds])) if stds else np.inf


def _rates_of(tasks: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Mean rates of policy, ceiling and blind floor; NaN for an arm that was not run."""
    nothing = {"rate": np.nan}
    policy, ceiling, blind = (
        sum(task.get(arm, nothing)["rate"] for task in tasks) / len(tasks)
        for arm in ("policy", "ceiling", "blind")
    )
    return policy, ceiling, blind


def _separation(sure: np.ndarray, unsure: np.ndarray) -> float:
    """Chance that a value of the first is smaller than one of the second, ties counting half."""
    if not len(sure) or not len(unsure):
        return float("nan")
    less = (sure[:, None] < unsure[None]).mean()
    return float(less + (sure[:, None] == unsure[None]).mean() / 2)
