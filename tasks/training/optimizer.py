"""The optimizer and its learning-rate schedule: defaults, checks and settings."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ai_wam.errors import InvalidValue
from ai_wam.utils.class_paths import class_path
from ai_wam.utils.number_checks import check_numbers

# As in lightning.pytorch.cli, whose own are typing's, which Python deprecates.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the settings that video models are trained with: betas 0.9 and 0.95, one kernel.

    It has no more arguments because a command line that names another optimizer keeps those that both have.

    Args:
        params: parameters or parameter groups.
        lr: learning rate; its peak, under a schedule.
        weight_decay: on matrices; `parameter_groups` says what has none.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, weight_decay: float = 0.01) -> None:
        check_numbers("AdamW", at_least=0, lr=lr, weight_decay=weight_decay)
        super().__init__(params, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)


class _Warmup(LambdaLR):
    """A share of the peak for every optimizer step.

    Its settings stay out of its state: a resumed run follows those it was given, which are compared before.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, steps: int | None) -> None:
        check_numbers(type(self).__name__, at_least=0, warmup_steps=warmup_steps)
        check_numbers(type(self).__name__, at_least=1, steps=steps)
        super().__init__(optimizer, partial(share_of_peak, warmup_steps=warmup_steps, steps=steps))

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments by name."""
        share: Any = self.lr_lambdas[0]  # one object for all parameter groups
        settings: dict[str, Any] = share.keywords
        return settings


class CosineWithWarmup(_Warmup):
    """Linear warm-up, then a cosine that falls to a hundredth of the peak and stays there.

    Args:
        optimizer: whose learning rate it sets.
        warmup_steps: of the linear warm-up.
        steps: optimizer step at which the cosine ends; the trainer's last one if left out.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 100, steps: int | None = None) -> None:
        super().__init__(optimizer, warmup_steps, steps)

    def end_at(self, steps: int | float) -> None:
        """Set the end where none was given.

        Args:
            steps: the trainer's last step; infinite or -1 where it has none.

        Raises:
            ValueError: a cosine without an end.
        """
        if self.settings["steps"] is None:
            if math.isinf(steps) or steps < 1:
                raise InvalidValue(
                    "CosineWithWarmup needs an end: set model.lr_scheduler.steps, trainer.max_steps or "
                    "trainer.max_epochs; or set model.lr_scheduler to "
                    "tasks.training.optimizer.ConstantWithWarmup"
                )
            self.settings["steps"] = int(steps)


class ConstantWithWarmup(_Warmup):
    """Linear warm-up, then the peak.

    Args:
        optimizer: whose learning rate it sets.
        warmup_steps: of the linear warm-up.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 100) -> None:
        super().__init__(optimizer, warmup_steps, None)


def share_of_peak(step: int, warmup_steps: int, steps: int | None) -> float:
    """The learning rate of an optimizer step as a share of its peak.

    Args:
        step: from 0 on.
        warmup_steps: of the linear warm-up.
        steps: at which the cosine ends; None stays at the peak.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    if steps is None:
        return warm
    progress = min(1.0, step / max(1, steps))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Everything that is trained; norms, biases and modulation tables without weight decay."""
    groups: list[dict[str, Any]] = []
    for module in modules:
        tables = [name for name, _ in module.named_parameters() if name.endswith("scale_shift_table")]
        groups += param_groups_weight_decay(module, 1.0, tables)
    for group in groups:
        if group["weight_decay"]:
            del group["weight_decay"]  # the optimizer's own
    return groups


def check_optimizer(optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable) -> None:
    """Refuse settings that no optimizer or schedule takes, before anything long has begun.

    Raises:
        ValueError: what the optimizer says of them; a schedule that follows a metric.
    """
    try:
        scheduler = lr_scheduler(optimizer([nn.Parameter(torch.zeros(1))]))
    except InvalidValue:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"optimizer, lr_scheduler: {error}; correct their init_args") from error
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InvalidValue(
            "lr_scheduler: ReduceLROnPlateau follows a metric, but schedules are stepped with the optimizer; "
            "choose one that follows steps, such as tasks.training.optimizer.CosineWithWarmup"
        )


def prepare(optimizer: Optimizer, scheduler: LRScheduler, steps: int | float) -> None:
    """Set the end of the schedule, and the optimizer's amp scaling, before the first step.

    Args:
        optimizer: of the run.
        scheduler: of that optimizer.
        steps: the trainer's last step, at which a cosine without an end of its own ends.
    """
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        # A fused step can undo a loss scaler's scale itself, and Lightning then refuses to clip gradients
        # under mixed precision, even without a scaler. Without this offer a scaler undoes it before clipping.
        optimizer._step_supports_amp_scaling = False
    if isinstance(scheduler, CosineWithWarmup):
        scheduler.end_at(steps)


def optimizer_settings(optimizer: Optimizer, scheduler: LRScheduler) -> dict[str, Any]:
    """Classes and settings as plain values, by the names of `ai-wam fit`; runs that resume must agree."""
    plain = {name: value for name, value in optimizer.defaults.items() if not isinstance(value, torch.Tensor)}
    settings = scheduler.settings if isinstance(scheduler, _Warmup) else {}
    return {
        "optimizer": class_path(optimizer),
        **{f"optimizer.{name}": value for name, value in plain.items()},
        "lr_scheduler": class_path(scheduler),
        **{f"lr_scheduler.{name}": value for name, value in settings.items()},
    }


def default_settings(optimizer: Optimizer) -> dict[str, Any]:
    """The defaults of an optimizer's options, by the names of `optimizer_settings`.

    A checkpoint lacks an option that was added after it was saved; the option had its default then.
    """
    parameters = inspect.signature(type(optimizer)).parameters.values()
    return {f"optimizer.{each.name}": each.default for each in parameters if each.default is not each.empty}


def learning_rate(step: int, settings: Mapping[str, Any]) -> float | None:
    """The rate of a step by `optimizer_settings`; None for schedules that are not ours."""
    if "lr_scheduler.warmup_steps" not in settings or "optimizer.lr" not in settings:
        return None
    warmup, end = settings["lr_scheduler.warmup_steps"], settings["lr_scheduler.steps"]
    return float(settings["optimizer.lr"] * share_of_peak(step, warmup, end))
