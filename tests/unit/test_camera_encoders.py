"""Cameras as a condition of every block: their latents, once per sample, and which blocks get them."""

from dataclasses import replace

import pytest
import torch
from backbone_twins import small_wan
from torch import nn

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip
from backbones.conditions.block_conditions import CameraEncoders, ray_videos
from backbones.conditions.prompts import Context
from backbones.wan import Wan
from backbones.weights.training_options import Training
from tasks.policy import PolicyControl

SIZE, FRAMES, VIEWS, BATCH = (32, 32), 9, 2, 2


def wan(**options: object) -> Wan:
    return small_wan(**{"camera_encoders": True, **options})


def rig() -> Cameras:
    poses = torch.eye(4).repeat(BATCH, VIEWS, 1, 1, 1)
    poses[:, :, :, 0, 3] = torch.arange(VIEWS)[:, None]
    return Cameras((torch.eye(3) * 30).expand(BATCH, VIEWS, 1, 3, 3), poses)


def inputs(model: Wan, name: str, cameras: Cameras | None = None) -> tuple[Canvas, Context, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    video, action = torch.rand(2, BATCH, VIEWS, 3, FRAMES, *SIZE, generator=g) * 2 - 1
    mask = torch.ones(BATCH, VIEWS, dtype=torch.bool)
    first, whole = ([model.encode(part[:, :, :, :n]) for part in (video, action)] for n in (1, FRAMES))
    cameras = cameras or rig()
    told = model.encode_cameras(cameras, SIZE, FRAMES)
    canvas = build_canvas(plan(name), model.spec, SIZE, cameras, mask, *first, *whole, camera_latents=told)
    context = model.encode_context(["reach the red ball", "lift"], video[:, :, :, :1], mask)
    return canvas, context, torch.randn(canvas.clean.shape, generator=g)


def count(model: Wan) -> list[int]:
    calls: list[int] = []
    model.denoiser.camera_encoders.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("cached", [False, True])
def test_encoders_run_once_per_sample(steps: int, cached: bool):
    model = wan(given_attention="one_way", cache_given=cached)
    canvas, context, noise = inputs(model, "policy")
    null = model.encode_context(
        ["", ""], torch.zeros(BATCH, VIEWS, 3, 1, *SIZE), torch.ones(BATCH, VIEWS) > 0
    )
    calls = count(model)
    model.sample(canvas, context, noise, steps, 2.0, null)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["policy", "joint"])
def test_remembering_changes_nothing(name: str):
    plain = wan(given_attention="one_way")
    cached = wan(given_attention="one_way", cache_given=True)
    canvas, context, noise = inputs(plain, name)
    z, u = torch.where(canvas.given, canvas.clean, noise), torch.tensor([0.9, 0.9])
    with torch.no_grad():
        wanted = plain.predict(z, u, canvas, context)
        assert torch.equal(plain.predict(z, u, canvas, plain.prepare(canvas, context)), wanted)
        found = cached.predict(z, u, canvas, cached.prepare(canvas, context))
    generated = (~canvas.given).expand_as(wanted)
    torch.testing.assert_close(found[generated], wanted[generated], atol=2e-5, rtol=1e-5)


def test_cameras_matter_through_the_encoders_alone():
    model = wan()
    canvas, context, noise = inputs(model, "joint")
    other, _, _ = inputs(model, "joint", rig().map(lambda m: m * 1.5 if m.shape[-1] == 3 else m))
    other = replace(other, condition=canvas.condition)
    u = torch.tensor([0.9, 0.5])
    with torch.no_grad():
        one, two = (model.predict(noise, u, each, context) for each in (canvas, other))
        assert (one - two).abs().max() > 1e-3
        for parameter in model.denoiser.camera_encoders.parameters():
            parameter.zero_()
        one, two = (model.predict(noise, u, each, context) for each in (canvas, other))
    assert torch.equal(one, two)


def test_they_start_silent_and_learn():
    model = wan()
    nn.init.zeros_(model.denoiser.camera_encoders.maps[0].weight)
    assert all(bool((p == 0).all()) for p in CameraEncoders(8, 2).parameters())
    canvas, context, noise = inputs(model, "joint")
    u = torch.tensor([0.9, 0.5])
    model.loss(canvas, context, u, noise).sum().backward()
    again = wan(training=Training(gradient_checkpointing=True))
    nn.init.zeros_(again.denoiser.camera_encoders.maps[0].weight)
    again.train().loss(canvas, context, u, noise).sum().backward()
    for one, other in zip(
        model.denoiser.camera_encoders.parameters(), again.denoiser.camera_encoders.parameters(), strict=True
    ):
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_tasks_tell_the_cameras():
    """Training as acting: canvases carry camera latents, of cameras held still where the plan acts."""
    task = PolicyControl(
        wan(), Clip(frames=FRAMES, size=SIZE, views=("a", "b")), sampling=Sampling(steps=2)
    ).eval()
    moving = rig().map(lambda matrix: matrix.repeat(1, 1, FRAMES, 1, 1))
    moving.world_from_camera[:, 1, :, 1, 3] = torch.linspace(0, 1, FRAMES)
    batch = Batch(
        video=torch.rand(BATCH, VIEWS, 3, FRAMES, *SIZE) * 2 - 1,
        cameras=moving,
        view_mask=torch.ones(BATCH, VIEWS, dtype=torch.bool),
        video_valid=torch.ones(BATCH, FRAMES, dtype=torch.bool),
        recorded=torch.ones(BATCH, FRAMES, dtype=torch.bool),
        actions=torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).repeat(BATCH, FRAMES, 1),
        action_valid=torch.ones(BATCH, FRAMES, dtype=torch.bool),
        prompts=("reach the red ball",) * BATCH,
        keys=("one", "two"),
    )
    canvas = task.training_canvas(batch, plan("policy"))
    still = task.backbone.encode_cameras(rig(), SIZE, FRAMES)
    assert torch.equal(canvas.camera_latents[:, :, 1:4], still[:, 0])
    assert torch.equal(canvas.camera_latents[:, :, 5:], still[:, 1])
    known = task.training_canvas(batch, plan("labeling")).camera_latents
    assert not torch.allclose(known[:, :, 9:], still[:, 1])
    calls = count(task.backbone)
    assert task.predict_action(batch.observation).actions.shape == (BATCH, FRAMES - 1, 8)
    assert len(calls) == 1


def test_a_canvas_without_camera_latents_is_refused():
    model = wan()
    canvas, context, noise = inputs(model, "joint")
    with pytest.raises(ValueError, match="the canvas has no camera latents; give those"):
        model.predict(noise, torch.ones(BATCH), replace(canvas, camera_latents=None), context)


def test_every_frame_of_a_view_carries_its_own_cameras():
    """Policy canvas: observation segments have the first camera latent, action segments all of them."""
    model = wan()
    canvas, _, _ = inputs(model, "policy")
    told = model.encode_cameras(rig(), SIZE, FRAMES)
    assert told.shape == (BATCH, VIEWS, 24, 3, 4, 4)
    wanted = torch.cat([told[:, v, :, :n] for v in range(VIEWS) for n in (1, 3)], dim=2)
    assert torch.equal(canvas.camera_latents, wanted)


def test_rays_lie_in_the_first_view_with_rlbench_axes():
    """The second camera stands 1 m to the right: in axes x left, y up, z forward it is at (-1, 0, 0)."""
    direction, moment = ray_videos(rig(), SIZE, FRAMES)
    assert direction.shape == (BATCH, VIEWS, 3, FRAMES, *SIZE)
    x, y = (torch.tensor(31.5) / 30, torch.tensor(0.5) / 30)  # the principal point is pixel (0, 0)'s corner
    wanted = torch.stack([-x, -y, torch.ones(())])
    wanted = wanted / wanted.norm()
    torch.testing.assert_close(direction[0, 0, :, 4, 0, 31], wanted)
    torch.testing.assert_close(direction[0, 1, :, 0, 0, 31], wanted)
    torch.testing.assert_close(moment[0, 0], torch.zeros_like(moment[0, 0]))
    crossed = torch.linalg.cross(torch.tensor([-1.0, 0, 0]), wanted) / 3
    torch.testing.assert_close(moment[0, 1, :, 0, 0, 31], crossed)


def test_lost_calibrations_say_nothing():
    poses = rig().world_from_camera.clone()
    poses[0, 1] = torch.nan
    videos = ray_videos(Cameras(rig().intrinsics, poses), SIZE, FRAMES)
    assert bool(videos.isfinite().all())
    assert bool((videos[:, 0, 1] == 0).all())
    assert bool((videos[0, 0, 0] != 0).any())
