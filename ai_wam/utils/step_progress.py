"""The progress of a training in optimizer steps."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

_LIGHTNINGS = (TQDMProgressBar, RichProgressBar)


class StepProgressBar(TQDMProgressBar):
    """One bar of the optimizer steps up to the training's last, with the time left for all of them.

    Lightning's own bars count the batches of an epoch and show the time left for that epoch.
    """

    def on_train_start(self, *_: Any) -> None:
        """Open the bar where the training stands."""
        bar = self.train_progress_bar = self.init_train_tqdm()
        last = self.trainer.estimated_stepping_batches
        bar.reset(total=None if math.isinf(last) else last)
        bar.initial = bar.n = self.trainer.global_step
        bar.refresh()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Do nothing: the bar spans all epochs."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count an optimizer step, if the batch completed one."""
        bar, step = self.train_progress_bar, trainer.global_step
        if bar.disable or step == bar.n or (step % self.refresh_rate and step != bar.total):
            return
        bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        bar.update(step - bar.n)


def show_steps(callbacks: list[Callback]) -> None:
    """Put a `StepProgressBar` in the place of the bar that Lightning chose, where there is one."""
    for place, callback in enumerate(callbacks):
        if isinstance(callback, _LIGHTNINGS) and type(callback) in _LIGHTNINGS:  # not one of a user's own
            callbacks[place] = StepProgressBar(int(callback.refresh_rate))
