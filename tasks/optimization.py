"""The optimizer and its schedule."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ai_wam.errors import InvalidValue

Schedule = Literal["cosine", "constant"]


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Everything that is trained; norms, biases and modulation tables without weight decay."""
    groups: list[dict[str, Any]] = []
    for module in modules:
        tables = [name for name, _ in module.named_parameters() if name.endswith("scale_shift_table")]
        groups += param_groups_weight_decay(module, weight_decay, tables)
    return groups


def adamw(
    groups: list[dict[str, Any]],
    learning_rate: float,
    warmup_steps: int,
    schedule: Schedule,
    steps: int | float,
) -> OptimizerLRScheduler:
    """AdamW with linear warm-up; "cosine" then falls to a hundredth at the last step, "constant" stays.

    Raises:
        ValueError: a cosine without a last step.
    """
    if schedule == "cosine" and math.isinf(steps):
        raise InvalidValue(
            "schedule: cosine needs trainer.max_steps or max_epochs; set one, or schedule: constant"
        )
    optimizer = AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, warmup_steps))
        if schedule == "constant":
            return warm
        progress = min(1.0, step / max(1, steps))
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
    }
