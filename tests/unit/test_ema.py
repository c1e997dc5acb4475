"""Averaged weights: the average itself, what a checkpoint holds, and going on from one."""

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ai_wam.utils.ema import AveragedWeights


class Line(LightningModule):
    """One trained number and one frozen one; notes the former after every step and in every validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.full((1,), 7.0), requires_grad=False)
        self.walked: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def on_train_batch_end(self, *_: object) -> None:
        self.walked.append(self.weight.item())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.weight.item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(folder: Path, steps: int, resume: bool = False, every: int = 1, decay: float = 0.5) -> Line:
    module, data = Line(), DataLoader(torch.ones(4), batch_size=1, num_workers=0)
    saving = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, callbacks=[AveragedWeights(decay, every), saving], val_check_interval=1,
        limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(module, data, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return module


def averages(walked: list[float], every: int = 1, decay: float = 0.5) -> list[float]:
    """By the average of diffusers."""
    weight, found = nn.Parameter(torch.ones(1)), []
    genuine = EMAModel([weight], decay)
    for step, value in enumerate(walked, start=1):
        weight.data.fill_(value)
        if step % every == 0:
            genuine.step([weight])
        found.append(genuine.shadow_params[0].item())
    return found


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
class TestFit:
    @pytest.mark.parametrize("every", [1, 2])
    def test_the_average_is_validated_and_left_behind(self, tmp_path: Path, every: int):
        module = fit(tmp_path, 4, every=every)
        expected = averages(module.walked, every)
        assert module.walked == pytest.approx([0.9, 0.8, 0.7, 0.6])
        assert module.validated == pytest.approx(expected)
        assert module.weight.item() == pytest.approx(expected[-1])

    def test_a_young_average_follows_the_weights(self, tmp_path: Path):
        """With a constant decay of 0.999 it would still be at 0.9 after twenty steps of 0.1."""
        module = fit(tmp_path, 20, decay=0.999)
        assert module.validated == pytest.approx(averages(module.walked, decay=0.999))
        assert module.walked[-1] == pytest.approx(-1)
        assert module.weight.item() < -0.5

    def test_weights_that_are_not_finite_end_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        fit(tmp_path, 4)
        good = (tmp_path / "last.ckpt").read_bytes()
        monkeypatch.setattr(Line, "training_step", lambda self, batch, _: self.weight.sum() * float("nan"))
        with pytest.raises(ValueError, match="not finite after optimizer step 5"):
            fit(tmp_path, 8, resume=True)
        assert (tmp_path / "last.ckpt").read_bytes() == good

    def test_a_checkpoint_holds_both_and_going_on_changes_nothing(self, tmp_path: Path):
        whole = fit(tmp_path / "whole", 4)
        begun = fit(tmp_path / "parts", 2)
        saved = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
        assert saved["state_dict"]["weight"].item() == pytest.approx(averages(begun.walked)[-1])
        assert saved["state_dict"]["frozen"].item() == 7
        assert {name: value.item() for name, value in saved["current_model_state"].items()} == {
            "weight": pytest.approx(begun.walked[-1])
        }
        resumed = fit(tmp_path / "parts", 4, resume=True)
        assert begun.walked + resumed.walked == whole.walked
        assert resumed.weight.item() == whole.weight.item()


@pytest.mark.parametrize(("decay", "every"), [(1.0, 1), (-0.1, 1), (0.9, 0)])
def test_wrong_settings_are_refused(decay: float, every: int):
    with pytest.raises(ValueError, match=f"got {decay} and {every}"):
        AveragedWeights(decay, every)
