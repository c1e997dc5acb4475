"""The loss weighted off the background of action images."""

from dataclasses import replace

import pytest
import torch
from moving_clips import batch_of
from torch.nn import functional

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from tasks.joint import JointGeneration
from tasks.training.blob_weights import blob_weights

CLIP = Clip(frames=9, size=(32, 32), views=("front", "side"))
DRAWS = ActionImageTokenizer()


@pytest.fixture(scope="module")
def task() -> JointGeneration:
    torch.manual_seed(0)
    return JointGeneration(
        instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone),
        CLIP,
        prompt_dropout=0.0,
        blob_weight=9.0,
    )


@pytest.mark.parametrize("name", ["joint", "policy", "labeling", "annotation"])
def test_positions_that_show_a_blob_weigh_more(task: JointGeneration, name: str):
    batch = batch_of()
    batch = replace(batch, actions=torch.cat([batch.actions[..., :7], 0 * batch.actions[..., 7:]], dim=-1))
    canvas = task.training_canvas(batch, plan(name))
    pixels = DRAWS.project(batch.actions, batch.cameras, CLIP.size)
    weight = blob_weights(9.0, pixels, DRAWS.blob_radii(CLIP.size), canvas, task.backbone.spec)
    drawn = DRAWS.encode(batch.actions, batch.cameras, CLIP.size).amax(2)  # b v t h w; closed: no pedestal
    grown = functional.max_pool2d(drawn.flatten(0, 1), 3, 1, 1).unflatten(0, drawn.shape[:2])
    seen, beside = (_by_latent(each) for each in (drawn, grown))
    total, count = 0, 0
    for segment, part, counted in zip(
        canvas.segments, canvas.unpack(weight), canvas.unpack(canvas.counted), strict=True
    ):
        if segment.kind is Kind.VIDEO:
            assert bool((part == 1).all())
            continue
        heavy = part > part.flatten(1).amin(1).view(-1, 1, 1, 1, 1)
        assert bool(heavy[seen[:, segment.view, None] > 0.02].all())
        assert not bool(heavy[beside[:, segment.view, None] < 0.01].any())
        ratio = part.flatten(1).amax(1) / part.flatten(1).amin(1)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 9))
        total, count = total + (part * counted).flatten(1).sum(1), count + counted.flatten(1).sum(1)
    torch.testing.assert_close(total / count, torch.ones_like(total))


def _by_latent(frames: torch.Tensor) -> torch.Tensor:
    """The brightest pixel "b v l h w" of each latent position."""
    cells = functional.max_pool2d(frames.flatten(0, 1), 8).unflatten(0, frames.shape[:2])
    return torch.stack([cells[:, :, 0], cells[:, :, 1:5].amax(2), cells[:, :, 5:].amax(2)], dim=2)


def test_a_lost_camera_and_missing_actions_weigh_alike(task: JointGeneration):
    batch = batch_of()
    lost = batch.cameras.world_from_camera.clone()
    lost[:, 0] = torch.nan
    actions = batch.actions.clone()
    actions[1] = 0
    batch = replace(batch, cameras=Cameras(batch.cameras.intrinsics, lost), actions=actions)
    canvas = task.training_canvas(batch, plan("joint"))
    weight = task._loss_weight(batch, plan("joint"), canvas)
    assert bool(weight.isfinite().all())
    assert bool((weight[1] == 1).all())
    first = canvas.unpack(weight)[1][0]  # of the lost view, which does not count
    assert float(first.amax()) == float(first.amin())


def test_the_loss_is_the_weighted_mean_of_the_errors(task: JointGeneration):
    canvas = task.training_canvas(batch_of(), plan("joint"))
    weight = task._loss_weight(batch_of(), plan("joint"), canvas)
    context = task._context(["reach"] * 3, batch_of().observation)
    u, noise = torch.full((3,), 0.5), torch.randn_like(canvas.clean)
    plain, _, error = task.backbone.loss_and_estimate(canvas, context, u, noise)
    weighted = task.backbone.loss_and_estimate(canvas, context, u, noise, weight)[0]
    counted = canvas.counted * weight
    torch.testing.assert_close(weighted, (error * weight).flatten(1).sum(1) / counted.flatten(1).sum(1))
    assert not torch.allclose(plain, weighted)
    ones = task.backbone.loss_and_estimate(canvas, context, u, noise, torch.ones_like(weight))[0]
    torch.testing.assert_close(ones, plain)


def test_weights_below_one_are_refused(task: JointGeneration):
    with pytest.raises(ValueError, match=r"blob_weight must be finite and at least 1, got 0\.5"):
        JointGeneration(task.backbone, CLIP, blob_weight=0.5)
