"""The optimizer and its schedule."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
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


def adamw(groups: list[dict[str, Any]], settings: Mapping[str, Any]) -> OptimizerLRScheduler:
    """AdamW with linear warm-up; "cosine" then falls to a hundredth at its last step, "constant" stays.

    Args:
        groups: `parameter_groups`.
        settings: learning_rate (at its peak), warmup_steps, schedule, and schedule_steps (where the cosine
            ends; None for "constant").
    """
    optimizer = AdamW(groups, lr=settings["learning_rate"], betas=(0.9, 0.95), fused=True)
    # A fused step can undo a loss scaler's scale itself, and Lightning then refuses to clip gradients under
    # mixed precision, even without a scaler. Without this offer a scaler undoes it before the clipping.
    optimizer._step_supports_amp_scaling = False
    scheduler = LambdaLR(optimizer, partial(rate, settings=settings))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def schedule_end(schedule: Schedule, asked: int | None, steps: int | float) -> int | None:
    """The step at which the schedule ends: the one asked for, or the trainer's last; None for "constant".

    Raises:
        ValueError: a cosine without a last step.
    """
    if schedule == "constant":
        return None
    if asked is not None and asked < 1:
        raise InvalidValue(
            f"schedule_steps must be 1 or more, got {asked}; leave it out for the trainer's last"
        )
    if asked is None and (math.isinf(steps) or steps < 1):  # Lightning's -1: a data set without an end
        raise InvalidValue(
            "schedule: cosine needs an end: set schedule_steps, trainer.max_steps or trainer.max_epochs; or "
            "set schedule: constant"
        )
    return asked or int(steps)


def rate(step: int, settings: Mapping[str, Any]) -> float:
    """The learning rate of a step, as a share of its peak; the settings are those of `adamw`."""
    warm = min(1.0, (step + 1) / max(1, settings["warmup_steps"]))
    if settings["schedule"] == "constant":
        return warm
    progress = min(1.0, step / max(1, settings["schedule_steps"]))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
