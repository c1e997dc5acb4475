"""Predicting the change: against a still scene, exactly what predicting clean latents is."""

from dataclasses import replace

import pytest
import torch
from moving_clips import batch_of
from torch import Tensor

from ai_wam.canvas import Canvas, Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip
from backbones.base import VideoBackbone
from tasks.joint import JointGeneration

CLIP = Clip(frames=9, size=(32, 32), views=("front", "side"))


def task_of(prediction: str, name: str = "wan-tiny") -> JointGeneration:
    torch.manual_seed(0)
    backbone = instantiate(f"configs/backbone/{name}.yaml", VideoBackbone, f"prediction={prediction}")
    return JointGeneration(backbone, CLIP, sampling=Sampling(steps=2)).eval()


def still_clips() -> Batch:
    """Two clips in which nothing moves."""
    clips = batch_of(2)
    now, pose = clips.video[:, :, :, :1], clips.actions[:, :1]
    return replace(clips, video=now.expand_as(clips.video), actions=pose.expand_as(clips.actions))


def silent(backbone: VideoBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(noisy: Tensor, *_: object) -> Tensor:
        return torch.zeros_like(noisy)

    monkeypatch.setattr(backbone, "predict", nothing)


def test_no_change_is_the_first_frame_held_and_no_action(monkeypatch: pytest.MonkeyPatch):
    task, clips = task_of("change"), still_clips()
    silent(task.backbone, monkeypatch)
    videos = task.generate_videos(clips, plan("joint"))
    first = task.backbone.decode(task.backbone.encode(clips.video[:, :, :, :1]))
    held = task.backbone.decode(task.backbone.encode(first.expand_as(clips.video)))
    shown, later = (videos[kind][:, :, :, 1:] for kind in (Kind.VIDEO, Kind.ACTION))  # the first is given
    torch.testing.assert_close(shown, held[:, :, :, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(later, torch.full_like(later, -1), atol=1e-4, rtol=0)


def test_the_loss_is_that_of_the_sum(monkeypatch: pytest.MonkeyPatch):
    task, clean, clips = task_of("change"), task_of("clean"), still_clips()
    u, g = torch.tensor([0.3, 0.9]), torch.Generator().manual_seed(1)
    canvas, context = (
        task.training_canvas(clips, plan("joint")),
        task.backbone.encode_context(["a", "b"], clips.video[:, :, :, :1], clips.view_mask),
    )
    noise, held = torch.randn(canvas.clean.shape, generator=g), canvas.held
    assert held is not None
    inner = clean.backbone.predict

    def summed(noisy: Tensor, level: Tensor, seen: Canvas, told: object) -> Tensor:
        return inner(noisy, level, seen, told) + held

    monkeypatch.setattr(clean.backbone, "predict", summed)
    plain = clean.training_canvas(clips, plan("joint"))
    assert plain.held is None
    expected = clean.backbone.loss_and_estimate(plain, context, u, noise)
    found = task.backbone.loss_and_estimate(canvas, context, u, noise)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_networks_that_take_a_picture_predict_as_released():
    with pytest.raises(ValueError, match="prediction: native or clean"):
        task_of("change", "svd-tiny")
