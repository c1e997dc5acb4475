"""Training ends at the first loss or gradient that is not finite, before it spoils all weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor

from ai_wam.errors import InvalidValue


@dataclass(frozen=True)
class SeenBatch:
    """Loss and rows of one batch of an optimizer step.

    Attributes:
        loss: its loss, on the device.
        rows: by the name of each plan, the keys of the rows that trained by it.
    """

    loss: Tensor
    rows: Mapping[str, Sequence[str]]

    def __str__(self) -> str:
        return ", ".join(f"{key} ({plan})" for plan, keys in self.rows.items() for key in keys)


class FiniteSteps:
    """The batches since the last optimizer step, to name the one with a loss that is not finite."""

    def __init__(self) -> None:
        self._batches: list[SeenBatch] = []

    def add(self, batch: SeenBatch) -> None:
        """Add a batch, without waiting for the device."""
        self._batches.append(batch)

    def check(self, gradient_norm: Tensor | None, step: int, strategy: Strategy | None = None) -> None:
        """Look at all batches of a step at once, before its gradients are used; all processes agree.

        Args:
            gradient_norm: of the gradients that the optimizer is about to use; None where a loss scaler skips
                steps whose gradients overflow.
            step: optimizer steps so far.
            strategy: of the trainer, where there are several processes.

        Raises:
            ValueError: a loss or the gradient is not finite; names the step, and keys and plans of the rows.
        """
        batches, self._batches = self._batches, []
        values = [each.loss.detach().float() for each in batches]
        values += [] if gradient_norm is None else [gradient_norm.detach().float()]
        fine, several = bool(torch.stack(values).isfinite().all()), False
        if isinstance(strategy, ParallelStrategy):
            fine, several = strategy.reduce_boolean_decision(fine, all=True), strategy.world_size > 1
        if fine:
            return
        bad = [each for each in batches if not each.loss.isfinite()]
        if several and not bad:
            raise InvalidValue(
                f"a loss or the gradient of optimizer step {step + 1} is not finite on another process, "
                "which names its rows, so training ends; the last checkpoint is as it was"
            )
        what = "loss" if bad else "gradient"
        rows = "; ".join(map(str, bad or batches))
        raise InvalidValue(
            f"the {what} of optimizer step {step + 1} is not finite, so training ends before the weights "
            f"change. The rows: {rows}. Look at these recordings with `ai-wam inspect`, or lower "
            "the learning rate (--model.optimizer.lr); the last checkpoint is as it was"
        )
