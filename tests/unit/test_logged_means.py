"""What a training tells of itself: shares, losses, gradients, decode errors."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from ai_wam.cameras import Cameras
from ai_wam.canvas import plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip
from backbones.base import VideoBackbone
from tasks.decoding.action_head import ActionHead
from tasks.evaluation.sample_videos import animated
from tasks.joint import JointGeneration
from tasks.labeling import ActionLabeling
from tasks.training.logged_means import LoggedMeans

CLIP = Clip(frames=5, size=(32, 32), views=("front", "side"))
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Found .* eval mode")


def batch_of(number: int, rows: int = 4, actions: bool = True) -> Batch:
    g = torch.Generator().manual_seed(number)
    k = torch.tensor([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]]).expand(rows, 2, 5, 3, 3)
    poses = torch.eye(4).repeat(rows, 2, 5, 1, 1)
    poses[:, 1] = torch.tensor([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    moved = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).repeat(rows, 5, 1)
    moved[:, :, :3] += 0.1 * torch.randn(rows, 5, 3, generator=g)
    known = torch.ones(rows, 5, dtype=torch.bool)
    return Batch(
        video=torch.rand(rows, 2, 3, 5, 32, 32, generator=g) * 2 - 1,
        cameras=Cameras(k, poses),
        view_mask=torch.ones(rows, 2, dtype=torch.bool),
        video_valid=known,
        recorded=known,
        actions=moved * actions,
        action_valid=known & actions,
        prompts=("reach",) * rows,
        keys=tuple(f"{number}-{row}" for row in range(rows)),
    )


class Batches(Dataset):
    def __init__(self, count: int, **options: object) -> None:
        self.count, self.options = count, options

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return batch_of(index, **self.options)


@pytest.fixture
def backbone() -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone, "architecture.num_layers=1")


def fit(task: JointGeneration | ActionLabeling, logger: object, train: Dataset, **options: object) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, num_sanity_val_steps=0, **quiet, **options
    )
    validated = DataLoader(Batches(2, rows=2), batch_size=None)
    trainer.fit(task, DataLoader(train, batch_size=None), validated)
    return trainer


def lines(folder: Path) -> list[dict[str, float]]:
    with next(folder.rglob("metrics.csv")).open() as stream:
        found = [
            {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)
        ]
    return [row for row in found if any(name.startswith("train/share") for name in row)]


def test_shares_of_every_line_sum_to_one_and_are_those_asked_for(backbone: VideoBackbone, tmp_path: Path):
    plans = {"policy": 0.7, "video_only": 0.2, "labeling": 0.1}
    task = JointGeneration(backbone, CLIP, plans=plans, sampling=Sampling(steps=1))
    fit(task, CSVLogger(tmp_path), Batches(40), log_every_n_steps=1, limit_val_batches=0)
    found = lines(tmp_path)
    assert [row["step"] for row in found] == list(range(40))
    for row in found:
        shares = {name: row[f"train/share_{name}"] for name in plans}
        assert sum(shares.values()) == pytest.approx(1)
        for name, share in shares.items():
            assert (f"train/loss_{name}" in row) == (share > 0)
        assert row["train/gradient_norm"] > 0
    for name, share in plans.items():
        assert sum(row[f"train/share_{name}"] for row in found) / 40 == pytest.approx(share, abs=0.1)
    assert min(row["train/share_labeling"] for row in found) == 0


def test_rows_without_actions_are_seen_in_the_shares(backbone: VideoBackbone, tmp_path: Path):
    task = JointGeneration(backbone, CLIP, plans={"policy": 1.0})
    fit(task, CSVLogger(tmp_path), Batches(4, actions=False), log_every_n_steps=2, limit_val_batches=0)
    for row in lines(tmp_path):
        assert (row["train/share_policy"], row["train/share_video_only"]) == (0, 1)
        assert "train/loss_policy" not in row
        assert "train/loss_action" not in row
        assert row["train/loss_video"] == pytest.approx(row["train/loss_video_only"], rel=1e-4)


def test_figures_are_means_over_the_steps_between(backbone: VideoBackbone):
    """Two plans at known noise levels: the parts must add up to the loss."""
    task, monitor, batch = JointGeneration(backbone, CLIP), LoggedMeans(), batch_of(0)
    u, losses = torch.tensor([0.1, 0.5, 0.55, 1.0]), []
    for name in ("joint", "policy"):
        canvas = task.training_canvas(batch, plan(name))
        context = backbone.encode_context(batch.prompts, batch.video[:, :, :, :1], batch.view_mask)
        noise = torch.randn(canvas.clean.shape, generator=torch.Generator().manual_seed(1))
        loss, _, error = backbone.loss_and_estimate(canvas, context, u, noise)
        monitor.losses(canvas, u, loss, error)
        losses.append(loss.detach())
        if name == "joint":
            half = monitor.means()
            assert (half["loss_video"] + half["loss_action"]) / 2 == pytest.approx(
                float(loss.detach().mean()), rel=1e-4
            )
            monitor.losses(canvas, u, loss, error)
    found, both = monitor.means(), torch.cat(losses)
    bins = {"0.0-0.2": [0, 4], "0.4-0.6": [1, 2, 5, 6], "0.8-1.0": [3, 7]}
    assert {name for name in found if name.startswith("loss_u")} == {f"loss_u{each}" for each in bins}
    for name, rows in bins.items():
        assert found[f"loss_u{name}"] == pytest.approx(float(both[rows].mean()), rel=1e-5)
    assert monitor.means() == {}


def test_every_plan_that_acts_is_validated_and_every_plan_is_shown(backbone: VideoBackbone, tmp_path: Path):
    plans = {"policy": 1.0, "labeling": 1.0, "action_conditioned": 1.0, "video_only": 1.0}
    head = ActionHead(width=32, layers=1)
    task = JointGeneration(backbone, CLIP, plans=plans, sampling=Sampling(steps=1), action_head=head)
    trainer = fit(task, TensorBoardLogger(tmp_path), Batches(1))
    measured = {name.rpartition("/")[0] for name in trainer.logged_metrics if name.startswith("val/")}
    assert measured == {f"val/{plan}{rung}" for plan in ("policy", "labeling") for rung in ("", "/head")}
    assert float(trainer.logged_metrics["val/labeling/head/valid"]) == 1
    events = next(tmp_path.rglob("events*")).read_bytes()
    for name in plans:
        assert f"samples/{name}/0".encode() in events


def test_a_labeling_model_is_validated_by_what_it_was_trained_on(backbone: VideoBackbone, tmp_path: Path):
    trainer = fit(ActionLabeling(backbone, CLIP, sampling=Sampling(steps=1)), CSVLogger(tmp_path), Batches(1))
    measured = {name.split("/")[1] for name in trainer.logged_metrics if name.startswith("val/")}
    assert measured == {"labeling", "annotation"}


def test_a_head_alone_can_meet_batches_without_actions(backbone: VideoBackbone, tmp_path: Path):
    """Its optimizer must get a gradient, if only of zeros."""
    head = ActionHead(width=32, layers=1)
    plans = {"video_only": 1.0, "policy": 1e-9}
    task = JointGeneration(backbone, CLIP, plans=plans, action_head=head, freeze_backbone=True)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    fit(task, CSVLogger(tmp_path), Batches(2), limit_val_batches=0, log_every_n_steps=1)
    assert lines(tmp_path)[-1]["train/gradient_norm"] == 0
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, before[f"backbone.{name}"])


def test_gradients_are_noted_once_per_optimizer_step(backbone: VideoBackbone, tmp_path: Path):
    task = JointGeneration(backbone, CLIP, plans={"policy": 1.0})
    fit(
        task,
        CSVLogger(tmp_path),
        Batches(4),
        accumulate_grad_batches=2,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    assert [row["step"] for row in lines(tmp_path)] == [0, 1]


def test_the_recorded_part_is_what_validation_measures(backbone: VideoBackbone):
    task, batch = (
        JointGeneration(backbone, CLIP, plans={"policy": 1.0}, sampling=Sampling(steps=1)),
        batch_of(0),
    )
    nothing = replace(batch, recorded=torch.arange(5).expand(4, 5) == 0)
    task.validation_step(nothing, 1)
    assert [name for name, value in task.errors.compute().items() if not value.isnan()] == []
    task.validation_step(batch, 1)
    assert task.errors.compute()["val/policy/valid"].isfinite()


@pytest.mark.parametrize(("height", "shown"), [(64, 384), (384, 384), (1152, 384)])
def test_sample_videos_have_one_palette_and_a_bounded_size(height: int, shown: int) -> None:
    """Small ones are enlarged, large ones shrunk: at 512 x 512 a validation spent minutes on palettes."""
    columns = np.linspace(0, 255, 2 * height).astype(np.uint8)
    video = np.zeros((6, height, 2 * height, 3), np.uint8)
    video[..., 0], video[..., 1] = columns, columns[::-1]
    video[3:, :, :, 2] = 200
    frames = animated(video)
    assert [frame.size for frame in frames] == [(2 * shown, shown)] * 6
    assert len({bytes(frame.getpalette() or ()) for frame in frames}) == 1
    assert max(np.asarray(frame).max() for frame in frames) < 256
    for frame, blue in ((frames[0], 0), (frames[-1], 200)):
        middle = np.asarray(frame.convert("RGB"))[shown // 2]
        assert np.abs(middle[:, 0].astype(int) - np.linspace(0, 255, 2 * shown)).max() < 20
        assert np.abs(middle[:, 2].astype(int) - blue).max() < 20
