"""Real-time chunking: what is given of committed actions, row by row, in sampling and in training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip, Committed
from backbones.base import VideoBackbone
from tasks.joint import JointGeneration
from tasks.policy import PolicyControl
from tasks.real_time_chunking import Prefix, draw_prefix

CLIP = Clip(frames=17, size=(32, 32), views=("front", "side"))
TINY = sorted(Path("configs/backbone").glob("*-tiny.yaml"))


@pytest.fixture(scope="module")
def backbone() -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)


def batch_of(rows: int = 3, size: int = 32, frames: int = 17) -> Batch:
    g = torch.Generator().manual_seed(0)
    k = torch.tensor([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]]).repeat(rows, 2, frames, 1, 1)
    k[..., :2, :] *= size / 32
    poses = torch.eye(4).repeat(rows, 2, frames, 1, 1)
    poses[:, 1] = torch.tensor([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    actions = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).repeat(rows, frames, 1)
    actions[:, :, :3] += 0.1 * torch.randn(rows, frames, 3, generator=g)
    return Batch(
        video=torch.rand(rows, 2, 3, frames, size, size, generator=g) * 2 - 1,
        cameras=Cameras(k, poses),
        view_mask=torch.ones(rows, 2, dtype=torch.bool),
        video_valid=torch.ones(rows, frames, dtype=torch.bool),
        recorded=torch.ones(rows, frames, dtype=torch.bool),
        actions=actions,
        action_valid=torch.ones(rows, frames, dtype=torch.bool),
        prompts=("reach the red ball",) * rows,
        keys=tuple(f"episode{row}" for row in range(rows)),
    )


def committed(batch: Batch, counts: list[int], length: int = 8) -> Committed:
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    actions = torch.where(valid[..., None], batch.actions[:, 1 : 1 + length], torch.nan)
    return Committed(actions, valid)


def given_frames(canvas) -> list[list[int]]:
    """Latent frames given of the action segments, by row, which all views must share."""
    parts = zip(canvas.segments, canvas.unpack(canvas.given), strict=True)
    counts = [given.all(4).all(3)[:, 0].sum(1) for segment, given in parts if segment.kind is Kind.ACTION]
    assert all(torch.equal(counts[0], other) for other in counts)
    return counts[0].tolist()


@pytest.mark.parametrize("name", ["policy", "joint"])
def test_every_row_is_given_what_it_has_committed(backbone: VideoBackbone, name: str):
    task, batch = JointGeneration(backbone, CLIP, control_plan=name, sampling=Sampling(steps=2)), batch_of(4)
    told = replace(batch.observation, committed=committed(batch, [8, 0, 7, 4]))
    canvas, latents = task.generate(plan(name), told, batch.cameras)
    assert given_frames(canvas) == [3, 1, 2, 2]  # 7 actions fill one latent frame of 4, rounded down
    assert torch.equal(
        latents[canvas.given.expand_as(latents)], canvas.clean[canvas.given.expand_as(latents)]
    )
    truth = task.encode_actions(batch.actions, batch.cameras)
    for segment, part in zip(canvas.segments, canvas.unpack(latents), strict=True):
        if segment.kind is Kind.ACTION:
            for row, count in enumerate([3, 1, 2, 2]):
                torch.testing.assert_close(part[row, :, :count], truth[row, segment.view, :, :count])
    free = canvas.clean[~canvas.given.expand_as(latents)]
    assert not free.any()  # nothing of what is to be generated is told


def test_a_row_does_not_depend_on_what_others_have_committed(backbone: VideoBackbone):
    task, batch = PolicyControl(backbone, CLIP, sampling=Sampling(steps=2)).eval(), batch_of(2)
    both = replace(batch.observation, committed=committed(batch, [8, 0]))
    together = task.predict_action(both).generated["action_images"]
    for row, count in enumerate([8, 0]):
        part = batch.rows([row])
        alone = replace(part.observation, committed=committed(part, [count]))
        images = task.predict_action(alone).generated["action_images"]
        torch.testing.assert_close(images[0], together[row], atol=1e-5, rtol=0)
    nothing = task.predict_action(batch.rows([1]).observation).generated["action_images"]
    torch.testing.assert_close(nothing[0], together[1], atol=1e-5, rtol=0)


def test_committed_actions_are_decoded_again(backbone: VideoBackbone):
    """At 64 pixels the tiny codec keeps blobs well enough to read them."""
    task = PolicyControl(backbone, replace(CLIP, size=(64, 64)), sampling=Sampling(steps=1)).eval()
    batch = batch_of(1, size=64)
    chunk = task.predict_action(replace(batch.observation, committed=committed(batch, [8])))
    assert chunk.position_std is not None
    assert torch.equal(chunk.position_std.isfinite(), chunk.valid)
    read = chunk.valid[0, :8]
    assert read.sum() >= 6
    error = (chunk.actions[0, :8, :3] - batch.actions[0, 1:9, :3]).norm(dim=1)[read]
    assert error.median() < 0.05


def test_who_gives_no_committed_actions_plans_as_before(backbone: VideoBackbone):
    task = PolicyControl(backbone, CLIP, sampling=Sampling(steps=1), prefix=Prefix(condition=False)).eval()
    batch = batch_of(1)
    told = replace(batch.observation, committed=committed(batch, [8]))
    assert torch.equal(task.predict_action(told).actions, task.predict_action(batch.observation).actions)


@pytest.mark.parametrize("length", [3, 16])
def test_prefixes_that_fill_no_latent_frames_or_all_are_refused(backbone: VideoBackbone, length: int):
    task, batch = PolicyControl(backbone, CLIP), batch_of(1)
    told = replace(batch.observation, committed=committed(batch, [length], length))
    with pytest.raises(ValueError, match=rf"prefix of {length} committed .* one of \[4, 8, 12\]"):
        task.predict_action(told)


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_every_backbone_continues_a_prefix(path: Path):
    task = PolicyControl(
        instantiate(str(path), VideoBackbone), CLIP, sampling=Sampling(steps=1), prefix=Prefix(dropin=1.0)
    )
    batch = batch_of(2)
    told = replace(batch.observation, committed=committed(batch, [8, 0]))
    canvas, latents = task.generate(task.control_plan, told, batch.cameras)
    first, second = given_frames(canvas)
    assert first - second == 8 // task.backbone.spec.temporal_stride
    given = canvas.given.expand_as(latents)
    assert torch.equal(latents[given], canvas.clean[given])
    task.log = lambda *_, **__: None
    task._trainer = type("Trainer", (), {"current_epoch": 0, "global_rank": 0})()
    task.training_step(batch, 0).backward()


def test_a_share_of_rows_trains_with_prefixes_of_every_length(backbone: VideoBackbone):
    batch, generator = batch_of().rows([0, 1, 2] * 1000), torch.Generator().manual_seed(0)
    drawn = draw_prefix(0.3, plan("joint"), batch, backbone.spec, generator)
    assert drawn is not None
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.1, 0.1, 0.1]), atol=0.02, rtol=0)
    for name in ("labeling", "video_only", "action_conditioned"):
        assert draw_prefix(0.3, plan(name), batch, backbone.spec, generator) is None
    state = generator.get_state()
    assert draw_prefix(0.0, plan("joint"), batch, backbone.spec, generator) is None
    assert torch.equal(generator.get_state(), state)  # who trains without draws what was drawn before


def test_a_given_prefix_is_not_in_the_loss(backbone: VideoBackbone):
    task, batch = PolicyControl(backbone, CLIP), batch_of(2)
    canvas = task.training_canvas(batch, plan("policy"), torch.tensor([2, 0]))
    assert given_frames(canvas) == [3, 1]
    assert not (canvas.counted & canvas.given).any()
    truth = task.training_canvas(batch, plan("policy"))
    assert torch.equal(canvas.clean, truth.clean)
    assert canvas.counted[0].sum() == truth.counted[0].sum() // 2


@pytest.mark.parametrize(
    ("share", "frames", "message"), [(1.5, 17, "between 0 and 1"), (0.5, 5, "4 actions, and 4 are given")]
)
def test_shares_that_cannot_be_trained_are_refused(
    backbone: VideoBackbone, share: float, frames: int, message: str
):
    with pytest.raises(ValueError, match=message):
        PolicyControl(backbone, replace(CLIP, frames=frames), prefix=Prefix(dropin=share))
