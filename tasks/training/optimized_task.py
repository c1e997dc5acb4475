"""What every trained task shares: its optimizer and schedule, checks of a resumed run, logged means."""

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from backbones.conditions.prompts import PromptEncoder
from tasks.checked_weights import CheckedWeights
from tasks.training.finite_steps import FiniteSteps
from tasks.training.logged_means import LoggedMeans
from tasks.training.optimizer import (
    CosineWithWarmup,
    LRSchedulerCallable,
    OptimizerCallable,
    check_optimizer,
    default_settings,
    optimizer_settings,
    prepare,
)
from tasks.training.resume_checks import check_same_optimizer


class OptimizedTask(CheckedWeights):
    """A LightningModule with one optimizer, whose schedule is stepped with it.

    A subclass calls `set_optimizer` when it is built, and adds its losses to `steps` and `logged_means`.
    """

    def set_optimizer(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable) -> None:
        """Take over the optimizer of the parameter groups, and its schedule.

        Raises:
            ValueError: settings that no optimizer or schedule takes.
        """
        check_optimizer(optimizer, lr_scheduler)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.logged_means, self.steps = LoggedMeans(), FiniteSteps()
        self._begun: dict[str, Any] | None = None  # settings of the optimizer of a run that is resumed
        self._begun_step = 0  # optimizer steps of that run
        self._settings: dict[str, Any] = {}  # of this run's optimizer
        self._defaults: dict[str, Any] = {}  # of that optimizer
        self._own_end = False  # whether its schedule was given an end

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that is trained."""

    def check_captions(self, prompts: PromptEncoder) -> None:
        """Refuse captions of the data that the prompt encoder cannot take, before training begins."""
        captions = getattr(self.trainer.datamodule, "captions", None)  # type: ignore[attr-defined]  # untyped
        if captions is not None:
            prompts.check(captions())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule."""
        optimizer = self.optimizer(self.parameter_groups())
        scheduler = self.lr_scheduler(optimizer)
        self._own_end = isinstance(scheduler, CosineWithWarmup) and scheduler.settings["steps"] is not None
        prepare(optimizer, scheduler, self.trainer.estimated_stepping_batches)
        self._settings, self._defaults = optimizer_settings(optimizer, scheduler), default_settings(optimizer)
        self._check_optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings of the optimizer, for runs that resume this one."""
        checkpoint["optimizer_settings"] = self._settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the saved settings of the optimizer, which a resumed run must have, too."""
        self._begun, self._begun_step = checkpoint.get("optimizer_settings"), checkpoint["global_step"]
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Refuse another optimizer than a resumed run began with, before its state is restored.

        Called when the optimizer is made and when the checkpoint is read: strategies differ in the order.
        """
        if self._begun is not None and self._settings and self.trainer.ckpt_path is not None:
            same = self._begun["optimizer"] == self._settings["optimizer"]
            begun = self._defaults | self._begun if same else self._begun
            check_same_optimizer(begun, self._settings, self._begun_step, self._own_end)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the gradients before they are clipped, and end where one is not finite."""
        norm, scaled = self.logged_means.gradients(self), self.trainer.precision == "16-mixed"
        self.steps.check(None if scaled else norm, self.trainer.global_step, self.trainer.strategy)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means of the steps, as often as the trainer logs."""
        self.logged_means.log(self.trainer)
