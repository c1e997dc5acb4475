"""`meta/stats.json` of a LeRobot data set: the statistics by which its policies normalise inputs.

Names and shapes are those of LeRobot's `compute_stats`; quantiles are of the whole set, as its script
`augment_dataset_quantile_stats` computes them, and exact where that one has 5,000 bins.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


@dataclass
class Numbers:
    """A column of numbers; every row is kept, 4 or 8 bytes per number."""

    _rows: list[np.ndarray] = field(default_factory=list)

    def add(self, rows: Shaped[np.ndarray, "n d"]) -> None:
        """Rows of an episode."""
        self._rows.append(rows)

    def to_json(self) -> dict[str, Any]:
        """The column's entry; lists of d numbers."""
        columns = np.sort(np.concatenate(self._rows).astype(np.float64), axis=0)
        places = {name: _rank(share, len(columns)) for name, share in QUANTILES.items()}
        found = {
            "min": columns[0],
            "max": columns[-1],
            "mean": columns.mean(axis=0),
            "std": columns.std(axis=0),
            **{name: columns[place] for name, place in places.items()},
        }
        return {**{name: value.tolist() for name, value in found.items()}, "count": [len(columns)]}


@dataclass
class Pictures:
    """The pictures of a camera, as counts of the 256 levels of each colour; every fourth row and column."""

    _counts: Int64[np.ndarray, "3 256"] = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    _pictures: int = 0

    def add(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Another picture."""
        levels = image[::4, ::4].reshape(-1, 3)
        self._counts += np.stack([np.bincount(levels[:, colour], minlength=256) for colour in range(3)])
        self._pictures += 1

    def to_json(self) -> dict[str, Any]:
        """The camera's entry, in parts of 255; the numbers have the shape (3, 1, 1)."""
        found = [_of_levels(counts) for counts in self._counts]
        numbers = {name: [[[colour[name]]] for colour in found] for name in found[0]}
        return {**numbers, "count": [self._pictures]}


def _of_levels(counts: Int64[np.ndarray, "256"]) -> dict[str, float]:
    levels, shares = np.arange(256) / 255, counts / counts.sum()
    seen, upto = levels[counts > 0], np.cumsum(counts)
    mean = float(shares @ levels)
    quantiles = {
        name: float(levels[np.searchsorted(upto, _rank(share, int(upto[-1])), side="right")])
        for name, share in QUANTILES.items()
    }
    spread = float(np.sqrt(shares @ (levels - mean) ** 2))
    return {"min": float(seen[0]), "max": float(seen[-1]), "mean": mean, "std": spread, **quantiles}


def _rank(share: float, count: int) -> int:
    """Place of a quantile among sorted values: the first one that this share of them does not exceed."""
    return max(int(np.ceil(round(share * count, 9))) - 1, 0)
