"""The learned decoder: silent at step 0, learns alone, travels in the checkpoint under its own prefix."""

from dataclasses import replace

import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip
from backbones.base import VideoBackbone
from tasks.decoding.action_head import ActionHead
from tasks.joint import JointGeneration
from tasks.policy import PolicyControl

CLIP = Clip(frames=9, size=(32, 32), views=("front", "side"))
FAMILIES = ["wan-tiny", "svd-tiny", "cogvideox1.5-i2v-tiny"]


def batch_of(rows: int = 2) -> Batch:
    g = torch.Generator().manual_seed(0)
    k = torch.tensor([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]]).expand(rows, 2, 9, 3, 3)
    poses = torch.eye(4).repeat(rows, 2, 9, 1, 1)
    poses[:, 1] = torch.tensor([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    actions = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).repeat(rows, 9, 1)
    actions[:, :, :3] += 0.1 * torch.randn(rows, 9, 3, generator=g)
    return Batch(
        video=torch.rand(rows, 2, 3, 9, 32, 32, generator=g) * 2 - 1, cameras=Cameras(k, poses),
        view_mask=torch.ones(rows, 2, dtype=torch.bool), video_valid=torch.ones(rows, 9, dtype=torch.bool),
        recorded=torch.ones(rows, 9, dtype=torch.bool),
        actions=actions, action_valid=torch.ones(rows, 9, dtype=torch.bool), prompts=("reach",) * rows,
        keys=tuple(map(str, range(rows))),
    )  # fmt: skip


def backbone_of(name: str = "wan-tiny", *changes: str) -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate(f"configs/backbone/{name}.yaml", VideoBackbone, *changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_untrained_head_returns_the_geometric_decode(name: str):
    task = PolicyControl(
        backbone_of(name), CLIP, action_head=ActionHead(width=32, layers=1), sampling=Sampling(steps=1)
    )
    batch = batch_of()
    canvas = task.training_canvas(batch, plan("policy"))
    images = task.decode_segments(canvas, canvas.clean, kinds=(Kind.ACTION,))
    assert list(images) == [Kind.ACTION]
    made = task.generated(canvas, canvas.clean, images[Kind.ACTION], batch.cameras, batch.observation)
    read = made.geometric
    assert read.valid.any()
    corrected = task.decoders["head"].read(made)
    known = read.valid
    torch.testing.assert_close(corrected.actions[known][:, :7], read.actions[known][:, :7], atol=1e-5, rtol=0)
    assert bool(corrected.valid.all())
    assert bool(corrected.position_std.isnan().all())
    lost = replace(made, images=torch.full_like(made.images, -1))
    assert not lost.geometric.valid.any()
    held = task.decoders["head"].read(lost).actions
    torch.testing.assert_close(held[..., :3], batch.actions[:, :1, :3].expand(-1, 9, -1), atol=1e-5, rtol=0)


def test_the_head_learns_and_leaves_the_frozen_video_model_alone(monkeypatch: pytest.MonkeyPatch):
    shallow = backbone_of("wan-tiny", "architecture.num_layers=1")
    task = PolicyControl(shallow, CLIP, action_head=ActionHead(width=32, layers=1), freeze_backbone=True)
    monkeypatch.setattr(PolicyControl, "log", lambda *_, **__: None)
    monkeypatch.setattr(PolicyControl, "current_epoch", 0)
    groups = task.parameter_groups()
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in task.action_head.parameters()}
    optimizer, batch, losses = torch.optim.AdamW(groups, lr=1e-2), batch_of(2), []
    for _ in range(14):
        loss = task.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert all(p.grad is None for p in task.backbone.parameters())
    assert all(p.grad is not None for p in task.action_head.parameters())


def test_what_a_head_adds_to_a_checkpoint_has_its_prefix():
    bare = JointGeneration(backbone_of(), CLIP)
    headed = PolicyControl(backbone_of(), CLIP, action_head=ActionHead(width=32, layers=1))
    with pytest.warns(UserWarning, match="hold no action head"):
        headed.load_state_dict(bare.state_dict())
    added = headed.state_dict().keys() - bare.state_dict().keys()
    assert added
    assert all(key.startswith("action_head.") for key in added)


def test_the_geometric_decoder_can_act_beside_a_head():
    head = ActionHead(width=32, layers=1)
    torch.nn.init.normal_(head.correction.bias)
    task = PolicyControl(
        backbone_of(), CLIP, action_head=head, decoder="geometric", sampling=Sampling(steps=1)
    ).eval()
    bare = PolicyControl(backbone_of(), CLIP, sampling=Sampling(steps=1)).eval()
    observation = batch_of().observation
    assert list(task.by_decoder()) == ["head"]
    assert not task.by_decoder(knows_std=True)
    told = task.predict_action(observation)
    torch.testing.assert_close(told.actions, bare.predict_action(observation).actions, equal_nan=True)
    task.decoder = "head"
    chunk = task.predict_action(observation)
    assert bool(chunk.valid.all())
    assert list(task.by_decoder()) == list(task.by_decoder(knows_std=True)) == ["geometric"]
    assert told.position_std is not None
    assert chunk.position_std is None  # so that a limit on it is refused instead of holding every pose


def test_observations_need_not_be_decoded_to_act():
    task = JointGeneration(backbone_of(), CLIP, sampling=Sampling(steps=1)).eval()
    observation = batch_of().observation
    whole = task.predict_action(observation)
    part = task.act(observation, "geometric")
    torch.testing.assert_close(part.actions, whole.actions, equal_nan=True)
    assert (set(whole.generated), set(part.generated)) == (
        {"action_images", "observation"},
        {"action_images"},
    )


@pytest.mark.parametrize("options", [{"decoder": "head"}, {"freeze_backbone": True}])
def test_what_needs_a_head_says_so(options: dict):
    with pytest.raises(ValueError, match="action_head"):
        PolicyControl(backbone_of(), CLIP, **options)


def test_a_head_needs_the_rays_of_the_canvas():
    with pytest.raises(ValueError, match="set rays: true"):
        PolicyControl(backbone_of("wan-tiny", "rays=false"), CLIP, action_head=ActionHead())


def test_a_head_is_not_sharded(monkeypatch: pytest.MonkeyPatch):
    task = PolicyControl(backbone_of(), CLIP, action_head=ActionHead(width=32, layers=1))
    monkeypatch.setattr(PolicyControl, "device_mesh", {"data_parallel": None})
    with pytest.raises(ValueError, match="action_head: null"):
        task.configure_model()
