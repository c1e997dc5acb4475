"""Means and medians of named metrics, in states that are sums."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torchmetrics import Metric

_LOWEST = 1e-4  # in the figure's own unit; anything below counts as zero in a median
_PER_DECADE, _DECADES = 250, 10


class Averages(Metric):
    """Means, and medians of some, of named metrics; subclasses add values in `update`.

    All states are sums, so that ranks add up to what one rank would have found. Medians come from a histogram
    of bins 0.9 % wide between 1e-4 and 1e6 and are therefore good to half a percent; of an even number of
    values the median is the lower middle one.

    Args:
        means: names of the figures.
        medians: those of them, none of them ever negative, whose median `NAME_median` is wanted too.
    """

    full_state_update = False
    totals: Tensor
    counts: Tensor
    histograms: Tensor

    def __init__(self, means: Sequence[str], medians: Sequence[str] = ()) -> None:
        super().__init__()
        self.means, self.medians = tuple(means), tuple(medians)
        self.add_state("totals", torch.zeros(len(means), dtype=torch.float64), "sum")
        self.add_state("counts", torch.zeros(len(means), dtype=torch.long), "sum")
        bins = torch.zeros(len(medians), _PER_DECADE * _DECADES + 1, dtype=torch.long)
        self.add_state("histograms", bins, "sum")

    def add(self, name: str, values: Shaped[Tensor, "*n"], counted: Bool[Tensor, "*n"]) -> None:
        """Add the values that count to a metric."""
        chosen, index = values[counted].double(), self.means.index(name)
        self.totals[index] += chosen.sum()
        self.counts[index] += chosen.numel()
        if name in self.medians:
            histogram = self.histograms[self.medians.index(name)]
            place = ((chosen / _LOWEST).log10() * _PER_DECADE).floor() + 1
            histogram += place.clamp(0, len(histogram) - 1).long().bincount(minlength=len(histogram))

    def compute(self) -> dict[str, Tensor]:
        """The averages so far; NaN where nothing counted."""
        found = dict(zip(self.means, self.totals / self.counts, strict=True))
        for name, histogram in zip(self.medians, self.histograms, strict=True):
            place = int((histogram.cumsum(0) * 2 >= histogram.sum()).int().argmax())
            middle = _LOWEST * 10 ** ((place - 0.5) / _PER_DECADE) if place else 0.0
            found[f"{name}_median"] = found[name].new_tensor(middle if histogram.any() else math.nan)
        return found
