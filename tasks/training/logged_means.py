"""Training metrics: means over the steps between two lines of the log."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from lightning import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ai_wam.canvas import Canvas

_BINS = 5  # of the noise level


class LoggedMeans:
    """Means of named metrics over the steps since they were last logged.

    share_PLAN: of the rows, those that trained by a plan; 0 is logged too, and all shares sum to 1.
    loss_PLAN: mean over the rows of a plan; head_PLAN: the action head's.
    loss_video, loss_action: over what was generated of the segments of one kind.
    loss_uA-B: over rows whose noise level lay between A and B.
    gradient_norm: before clipping.

    Losses hold the weight that the noise path gives to a noise level. Each rank keeps its own, rank 0 logs.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float | int] = defaultdict(float)
        self._counts: dict[str, Tensor | float | int] = defaultdict(float)
        self._logged = 0

    def add(self, name: str, total: Tensor | float | int, count: Tensor | float | int = 1) -> None:
        """Add a sum of `count` values to a metric, without waiting for the device."""
        self._totals[name] = self._totals[name] + (total.detach() if isinstance(total, Tensor) else total)
        self._counts[name] = self._counts[name] + count

    def shares(self, plans: Sequence[str], rows: Mapping[str, int]) -> None:
        """Add how many rows of a batch train by each of the plans."""
        total = sum(rows.values())
        for name in dict.fromkeys([*plans, *rows]):
            self.add(f"share_{name}", rows.get(name, 0), total)

    def losses(
        self,
        canvas: Canvas,
        u: Float[Tensor, "b"],
        loss: Float[Tensor, "b"],
        error: Float[Tensor, "b 1 f h w"],
    ) -> None:
        """Add the losses of rows that share a canvas.

        Args:
            canvas: what was generated.
            u: noise levels.
            loss: per row.
            error: per position, 0 where the loss does not count.
        """
        parts = zip(canvas.segments, canvas.unpack(error), canvas.unpack(canvas.counted), strict=True)
        for segment, part, counted in parts:
            self.add(f"loss_{segment.kind.value}", part.sum(), counted.sum())
        place = (u * _BINS).long().clamp(max=_BINS - 1)
        for index in range(_BINS):
            here = place == index
            low, high = index / _BINS, (index + 1) / _BINS
            self.add(f"loss_u{low:.1f}-{high:.1f}", torch.where(here, loss, 0).sum(), here.sum())

    def gradients(self, module: nn.Module) -> Tensor:
        """Add the norm of all gradients, and return it."""
        found = [each.grad for each in module.parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm(found)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.add("gradient_norm", norm)
        return norm

    def means(self) -> dict[str, float]:
        """The means so far; all sums are reset."""
        counts = {name: float(count) for name, count in self._counts.items()}
        found = {name: float(self._totals[name]) / count for name, count in counts.items() if count}
        self._totals.clear()
        self._counts.clear()
        return found

    def log(self, trainer: Trainer) -> None:
        """Log the means to the trainer's loggers, as often as it logs."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]  # its connector sets it
        if not every or step % every or step == self._logged:  # equal while gradients are accumulated
            return
        self._logged = step
        found = {f"train/{name}": value for name, value in self.means().items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step - 1)  # Lightning counts from 0
