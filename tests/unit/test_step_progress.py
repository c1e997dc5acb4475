"""The bar of a training counts optimizer steps over all epochs, from where a resumed run stands."""

from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader

from ai_wam.utils.step_progress import StepProgressBar, show_steps


class Line(LightningModule):
    """Two batches an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(4, 1), batch_size=2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, steps: int, **options: object) -> Trainer:
    made = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    show_steps(made.callbacks)
    return made


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_steps_are_counted_over_epochs_and_a_resumed_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    first = trainer(tmp_path, 4)
    first.fit(Line())
    assert "4/4 [" in capsys.readouterr().out.replace("\r", "\n").strip().splitlines()[-1]
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, 8).fit(Line(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=False)
    shown = capsys.readouterr().out.replace("\r", "\n").strip().splitlines()
    assert any("4/8 [" in line for line in shown)
    assert not any("1/8 [" in line for line in shown)
    assert "8/8 [" in shown[-1]


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_without_a_last_step_there_is_no_total(tmp_path: Path, capsys: pytest.CaptureFixture):
    trainer(tmp_path, -1, max_epochs=-1, max_time="00:00:00:01").fit(Line())
    assert "/?" in capsys.readouterr().out


def test_only_the_bar_that_lightning_chose_is_replaced():
    class Mine(TQDMProgressBar):
        """A user's own."""

    own: list[Callback] = [Mine()]
    show_steps(own)
    assert type(own[0]) is Mine
    chosen: list[Callback] = [Callback(), TQDMProgressBar(refresh_rate=7)]
    show_steps(chosen)
    assert isinstance(chosen[1], StepProgressBar)
    assert chosen[1].refresh_rate == 7
    none = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).callbacks
    show_steps(none)
    assert not any(isinstance(each, ProgressBar) for each in none)
