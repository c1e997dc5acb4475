"""Judging plans on recorded clips: baselines, ceilings, what counts, what is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from ai_wam.action_images import ActionImageTokenizer, DecodedActions
from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip
from backbones.base import VideoBackbone
from tasks.evaluation.recorded_clips import ClipEvaluation, ClipEvaluator, table
from tasks.joint import JointGeneration

CLIP = Clip(frames=5, size=(64, 64), views=("front", "side"))
TOKENIZER = ActionImageTokenizer()


def batch_of(rows: int = 2) -> Batch:
    """A tool that moves 10 mm a frame to the right of the first camera; the gripper closes at frame 2."""
    k = torch.tensor([[60.0, 0, 32], [0, 60.0, 32], [0, 0, 1]]).expand(rows, 2, 5, 3, 3)
    poses = torch.eye(4).repeat(rows, 2, 5, 1, 1)
    poses[:, 1] = torch.tensor([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    actions = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).repeat(rows, 5, 1)
    actions[:, :, 0] += 0.01 * torch.arange(5)
    actions[:, 2:, 7] = 0
    g = torch.Generator().manual_seed(0)
    return Batch(
        video=torch.rand(rows, 2, 3, 5, 64, 64, generator=g) - 0.5,
        cameras=Cameras(k, poses),
        view_mask=torch.ones(rows, 2, dtype=torch.bool),
        video_valid=torch.ones(rows, 5, dtype=torch.bool),
        recorded=torch.ones(rows, 5, dtype=torch.bool),
        actions=actions,
        action_valid=torch.ones(rows, 5, dtype=torch.bool),
        prompts=("",) * rows,
        keys=tuple(str(row) for row in range(rows)),
    )


def videos(batch: Batch) -> dict[Kind, torch.Tensor]:
    return {
        Kind.VIDEO: batch.video,
        Kind.ACTION: 2 * TOKENIZER.encode(batch.actions, batch.cameras, CLIP.size) - 1,
    }


def judged(
    name: str, batch: Batch, model: Batch, networks: dict[str, nn.Module] | None = None
) -> ClipEvaluator:
    """The truth through a perfect codec, and another batch as what the model made of it."""
    judge = ClipEvaluator(plan(name), TOKENIZER, networks or {}, torch.device("cpu"))
    judge.update(batch, batch.cameras, videos(model), videos(batch), decoded(videos(model), batch))
    return judge


def decoded(pictures: dict[Kind, torch.Tensor], batch: Batch) -> dict[str, DecodedActions]:
    images = (pictures[Kind.ACTION] + 1) / 2
    return {"geometric": TOKENIZER.decode(images, batch.cameras, batch.view_mask)}


def whole_of(name: str, batch: Batch, frames: int) -> dict[str, dict[str, float]]:
    """Figures of the first frames as a clip of their own."""
    names = ("video_valid", "recorded", "actions", "action_valid")
    masks = {each: getattr(batch, each)[:, :frames] for each in names}
    cut = replace(batch, cameras=batch.cameras[:, :, :frames], video=batch.video[:, :, :, :frames], **masks)
    return judged(name, cut, cut).compute()


def test_baselines_and_ceiling_stand_beside_the_model():
    batch = batch_of()
    moved = replace(batch, video=batch.video + 0.2, actions=batch.actions.clone())
    moved.actions[:, 1:, 1] += 0.005
    arms = judged("joint", batch, moved).compute()
    assert list(arms) == ["model", "copy_first_frame", "hold_still", "codec"]
    assert arms["model"]["psnr"] == pytest.approx(20, abs=1e-3)
    assert arms["codec"]["psnr"] == pytest.approx(58.92, abs=0.01)
    error = (batch.video[:, :, :, 1:] - batch.video[:, :, :, :1]).div(2).square().mean((2, 4, 5))
    assert arms["copy_first_frame"]["psnr"] == pytest.approx(float(-10 * error.log10().mean()), abs=1e-3)
    assert arms["model"]["position_mm"] == pytest.approx(5, abs=0.2)
    assert arms["hold_still"]["position_mm"] == pytest.approx((10 + 20 + 30 + 40) / 4, rel=1e-4)
    assert arms["hold_still"]["final_position_mm"] == pytest.approx(40, rel=1e-4)
    assert arms["hold_still"]["gripper_accuracy"] == 0.25
    assert arms["hold_still"]["gripper_f1"] == 0
    assert arms["codec"]["position_mm"] < 0.2
    assert arms["codec"]["gripper_f1"] == arms["codec"]["valid"] == 1


def test_frames_past_the_end_are_nobodys_merit():
    """Where the last frame repeats, doing nothing is right: it must not count."""
    batch = batch_of()
    ended = replace(batch, video=batch.video.clone(), actions=batch.actions.clone())
    ended.video[:, :, :, 3:], ended.actions[:, 3:] = ended.video[:, :, :, 2:3], ended.actions[:, 2:3]
    ended.recorded[:, 3:] = False
    for name in ("joint", "labeling"):
        whole, padded = (judged(name, each, each).compute() for each in (batch_of(), ended))
        short = whole_of(name, ended, 3)
        for figure in set(padded["hold_still"]) - {"gripper_f1"}:
            assert padded["hold_still"][figure] == pytest.approx(short["hold_still"][figure], rel=1e-5)
        assert padded["hold_still"]["position_mm"] < whole["hold_still"]["position_mm"]
    copied = judged("joint", ended, ended).compute()["copy_first_frame"]["psnr"]
    assert copied == pytest.approx(whole_of("joint", ended, 3)["copy_first_frame"]["psnr"], rel=1e-5)


def test_hold_still_answers_for_the_models_steps():
    batch = batch_of()
    pictures = videos(batch)
    pictures[Kind.ACTION] = pictures[Kind.ACTION].clone()
    pictures[Kind.ACTION][:, :, :, 3:] = -1  # nothing to be read
    judge = ClipEvaluator(plan("policy"), TOKENIZER, {}, torch.device("cpu"))
    judge.update(batch, batch.cameras, pictures, videos(batch), decoded(pictures, batch))
    arms = judge.compute()
    assert arms["model"]["valid"] == arms["hold_still"]["valid"] == 0.5
    assert arms["hold_still"]["position_mm"] == pytest.approx((10 + 20) / 2, rel=1e-4)
    assert next(iter(arms["model"])) == "valid"


def test_poses_read_off_the_latents_are_an_arm_of_their_own():
    batch = batch_of()
    pictures = videos(batch)
    read = dict(decoded(pictures, batch))
    off = read["geometric"].actions.clone()
    off[..., 0] += 0.02
    read["latent"] = replace(read["geometric"], actions=off)
    judge = ClipEvaluator(plan("policy"), TOKENIZER, {}, torch.device("cpu"), ["latent"])
    judge.update(batch, batch.cameras, pictures, videos(batch), read)
    arms = judge.compute()
    assert list(arms) == ["model", "latent", "hold_still", "codec"]
    assert arms["model"]["position_mm"] < 1
    assert arms["latent"]["position_mm"] == pytest.approx(20, abs=1)


def test_labels_are_tracks_too():
    """A frame moves the points by 0.6 pixels in the first view, 2.4 of 256."""
    batch = batch_of()
    arms = judged("labeling", batch, batch).compute()
    assert list(arms) == ["model", "hold_still", "codec"]
    assert arms["model"] == arms["codec"]
    assert arms["model"]["average_jaccard"] == 1
    assert arms["model"]["trajectory_error"] < 0.2
    front = batch.rows([0])
    front.view_mask[:, 1] = False
    held = judged("labeling", front, front).compute()["hold_still"]
    points = 2.4 * (1 + 1 + 1 / 0.9) / 3  # the third point is a tenth of a metre nearer
    assert held["trajectory_error"] == pytest.approx(points * 2.5, rel=1e-3)
    assert held["within_4"] == pytest.approx(1 / 4)


def test_only_generated_views_count():
    batch = batch_of()
    moved = replace(batch, video=batch.video.clone())
    moved.video[:, 0] = -1  # given by the plan: view 0's video is no figure of this model
    moved.video[:, 1] += 0.2
    assert judged("cross_view", batch, moved).compute()["model"]["psnr"] == pytest.approx(20, abs=1e-3)


def test_rows_without_actions_count_in_video_only():
    batch = batch_of()
    batch.action_valid[1], batch.actions[1] = False, 0
    for name, clips in (("joint", 1), ("action_conditioned", 1), ("video_only", 2)):
        judge = judged(
            name, batch, replace(batch, video=batch.video + torch.tensor([0.2, 2]).view(2, 1, 1, 1, 1, 1))
        )
        assert int(judge.clips.compute()) == clips
        psnr = judge.compute()["model"]["psnr"]
        assert (psnr == pytest.approx(20, abs=1e-3)) == (clips == 1)
    assert "position_mm" not in judge.compute()["model"]


def test_tables_have_a_column_per_arm():
    lines = table({"model": {"psnr": 23.456}, "codec": {"psnr": 31.2, "valid": 1.0}}).splitlines()
    assert [line.split() for line in lines] == [
        ["model", "codec"],
        ["psnr", "23.46", "31.2"],
        ["valid", "-", "1"],
    ]
    assert len({len(line) for line in lines}) == 1


class Colours(nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean((3, 4)).amax(2)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> JointGeneration:
    file = tmp_path_factory.mktemp("networks") / "colours.pt"
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.script(Colours()).save(str(file))
    torch.manual_seed(0)
    backbone = instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)
    networks = {"fvd_colours": str(file)}
    return JointGeneration(
        backbone,
        CLIP,
        plans={"video_only": 1.0, "policy": 1.0},
        sampling=Sampling(steps=1),
        evaluation=ClipEvaluation(networks=networks),
    )


def trained_by(folder: Path) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, **quiet)


@pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers")
def test_a_test_writes_every_figure_and_leaves_nothing_behind(task: JointGeneration, tmp_path: Path):
    names = set(task.state_dict())
    loader = DataLoader([batch_of()], batch_size=None)
    (logged,) = trained_by(tmp_path).test(task, loader, verbose=False)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert list(written["plans"]) == ["video_only", "policy"]  # those trained on
    assert written["left_out"].keys() == {"lpips"}
    assert written["plans"]["video_only"]["arms"]["codec"].keys() == {"psnr", "ssim", "fvd_colours"}
    for name, found in written["plans"].items():
        for arm, figures in found["arms"].items():
            prefix = f"test/{name}/" if arm == "model" else f"test/{name}/{arm}/"
            for figure, value in figures.items():
                assert logged[prefix + figure] == pytest.approx(value, rel=1e-5)
    assert set(task.state_dict()) == names
    assert not task._evaluators
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_unknown_plans_and_metrics_are_refused(task: JointGeneration):
    with pytest.raises(ValueError, match="unknown plan 'act'"):
        JointGeneration(task.backbone, CLIP, evaluation=ClipEvaluation(plans=["act"]))
    with pytest.raises(ValueError, match="unknown metric 'fid'"):
        JointGeneration(task.backbone, CLIP, evaluation=ClipEvaluation(networks={"fid": "x"}))
