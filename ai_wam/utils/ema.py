"""Exponential moving average (EMA) of the trained weights, which is validated, saved and tested."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ai_wam.errors import InvalidValue


class AveragedWeights(Callback):
    """Exponential moving average of the trained weights; sharded like them.

    Lightning's own callback copies the whole module, frozen encoders included, and refuses sharded ones. A
    checkpoint holds the averages as `state_dict`, so that every reader gets them, and the weights that
    training continues with as `current_model_state`.

    With a constant decay the average of a young run would hold the weights of its first steps for a
    thousand steps. So the first update takes the weights over, and after n updates the next one keeps at most
    (1 + n) / (10 + n) of the average, as `diffusers.training_utils.EMAModel` does; a decay of 0.999 is
    reached after 8,990 updates.

    Args:
        decay: share of the average that one update keeps, once the average is old enough.
        every_n_steps: optimizer steps between updates.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1 or every_n_steps < 1:
            raise InvalidValue(
                f"decay must lie in [0, 1) and every_n_steps be 1 or more, got {decay} and {every_n_steps}"
            )
        self.decay, self.every_n_steps = decay, every_n_steps
        self._averages: dict[str, Tensor] | None = None  # the weights, while the module holds the averages
        self._swapped = False
        self._updated = 0  # optimizer steps at the last update

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the averages of an earlier fit.

        Raises:
            ValueError: a ModelCheckpoint that would save the weights in the place of their averages.
        """
        if stage != "fit":
            return
        if any(getattr(each, "save_weights_only", False) for each in trainer.checkpoint_callbacks):
            raise InvalidValue(
                "ModelCheckpoint: save_weights_only leaves the averages out; set it to false, or leave out "
                "AveragedWeights"
            )
        self._averages, self._swapped, self._updated = None, False, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint brought averages."""
        trained = _trained(pl_module)
        if self._averages is None:
            self._averages = {name: p.detach().clone() for name, p in trained.items()}
        self._averages = {name: value.to(trained[name].device) for name, value in self._averages.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update after an optimizer step.

        Raises:
            ValueError: weights that are not finite, which would make the average so for good.
        """
        assert self._averages is not None
        if trainer.global_step < self._updated + self.every_n_steps:
            return
        trained = _trained(pl_module)
        _check_finite(trained.values(), trainer.global_step)
        weight = 1 - self.kept(self._updated // self.every_n_steps)
        for name, parameter in trained.items():
            self._averages[name].lerp_(parameter, weight)
        self._updated = trainer.global_step

    def kept(self, updates: int) -> float:
        """The share of the average that an update keeps, after so many earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates)) if updates else 0.0

    @contextmanager
    def averaged(self, module: LightningModule) -> Iterator[None]:
        """The module holds the averages, and afterwards the weights again."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averages."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module."""
        self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The step of the last update."""
        return {"updated": self._updated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the last update."""
        self._updated = state_dict["updated"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the averages as the model's state, and the weights beside them."""
        if self._averages is None:
            return
        swapped, here = self._swapped, checkpoint["state_dict"]
        with self.averaged(pl_module):
            state = trainer.strategy.lightning_module_state_dict()
            there = {name: value.clone() for name, value in state.items()}
        averages, weights = (here, there) if swapped else (there, here)
        names = _trained(pl_module).keys() & weights.keys()  # none on ranks that do not save
        checkpoint["state_dict"] = averages
        checkpoint["current_model_state"] = {name: weights[name] for name in sorted(names)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The averages have just been loaded into the module: keep them, and give it the weights."""
        if "current_model_state" not in checkpoint or not trainer.training:
            return
        self._averages = {name: p.detach().clone() for name, p in _trained(pl_module).items()}
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(pl_module, checkpoint["current_model_state"], options=options)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        if self._averages is None:
            return
        for name, parameter in _trained(pl_module).items():
            average = self._averages[name].clone()
            self._averages[name].copy_(parameter)
            parameter.copy_(average)
        self._swapped = not self._swapped


def _check_finite(trained: Iterable[Tensor], step: int) -> None:
    norm = nn.utils.get_total_norm(trained)
    if not bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite()):
        raise InvalidValue(
            f"the weights are not finite after optimizer step {step}, so neither averages nor "
            "checkpoints take them in; lower the learning rate (--model.optimizer.lr), and begin anew with "
            "--weights LAST_CHECKPOINT"
        )


def _trained(module: LightningModule) -> dict[str, nn.Parameter]:
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after a forward without gradients it may still hold whole parameters
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
