"""What an epoch saw of the recordings."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch

from ai_wam.types import Clip
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.checks.epoch_coverage import CoverageReport
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards

SOURCE = MovingSquares(4, 12, (32, 32))
CLIP = Clip(frames=3, stride=4, size=(32, 32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    place = tmp_path_factory.mktemp("coverage")
    write_shards(SOURCE, place / "many", 2, workers=0, progress=False)
    write_shards(replace(SOURCE, episodes=1), place / "one", 2, workers=0, progress=False)
    return {str(place / "many"): 0.25, str(place / "one"): 0.75}


def test_the_report_is_what_the_loader_gives(folders: dict[str, float]):
    data = ShardDataModule(CLIP, folders, batch_size=2, workers=0, epoch_size=40)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(2):
        seen = Counter(key for batch in loader for key in batch.keys)
        many, one = data.coverage(epoch)
        assert (many.samples, one.samples, one.share) == (10, 30, 0.75)
        assert (many.windows, one.windows, many.episodes, one.episodes) == (51, 12, 4, 1)
        assert one.times == {30: 1}
        assert one.windows_seen == 12
        assert sum(times * count for times, count in many.times.items()) == 10
        total = Counter(key.split("@")[0] for key in seen.elements())
        assert sum(total.values()) == 40
        others = [total[f"squares-{number:04d}"] for number in (1, 2, 3)]  # number 0 lies in both folders
        assert not Counter(others) - Counter(many.times)
        assert "10 samples (25.0%)" in many.line()
    assert sum(folder.samples for folder in data.coverage(0, steps=3)) == 6


def test_episodes_without_a_window_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_shards(SOURCE, tmp_path / "all", 2, workers=0, progress=False)  # of 12 to 14 recorded frames
    data = ShardDataModule(
        replace(CLIP, frames=4), str(tmp_path / "all"), batch_size=2, workers=0, pad="none"
    )
    with caplog.at_level("INFO"):
        data.setup("fit")
    data.train_dataloader()
    (folder,) = data.coverage(0)
    assert (folder.episodes, folder.too_short) == (2, 2)
    assert folder.line().endswith("; too short for a window: 2")
    assert f"{tmp_path / 'all'}: 2 of 4 episodes are too short for a window" in caplog.text


class Still(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`:UserWarning")
def test_every_epoch_is_reported(folders: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = ShardDataModule(CLIP, folders, batch_size=2, workers=0, epoch_size=40)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_steps=25, callbacks=[CoverageReport()],
    )  # fmt: skip
    with caplog.at_level("INFO"):
        trainer.fit(Still(), datamodule=data)
    whole, part = (
        json.loads((tmp_path / "coverage" / f"epoch-{epoch:05d}.json").read_text()) for epoch in (0, 1)
    )
    assert (whole["steps"], part["steps"]) == (20, 5)
    assert sum(folder["samples"] for folder in part["folders"]) == 10
    assert whole["folders"][1]["times"] == {"30": 1}
    assert "epoch 0, 20 steps:" in caplog.text
    assert "1 of 1 episodes, each 30 to 30 times; 12 of 12 windows" in caplog.text
