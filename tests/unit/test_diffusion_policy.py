"""The baseline that predicts actions as numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from moving_clips import batch_of
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

from ai_wam.cameras import Cameras
from ai_wam.diffusion.solvers import Sampling
from ai_wam.poses import rotation_from_vector, vector_from_quaternion
from ai_wam.types import Clip
from tasks.diffusion_policy import DiffusionPolicy
from tasks.numeric.chunk_denoiser import ChunkDenoiser
from tasks.numeric.relative_actions import RelativeActions
from tasks.numeric.view_encoder import ViewEncoder

CLIP = Clip(frames=9, size=(32, 32), views=("front", "side"))
GROUPS = {"norm_layer": "groupnorm"}


def policy(**options: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    encoder = options.pop("encoder", None) or ViewEncoder(options=GROUPS, keypoints=4, width=32)
    return DiffusionPolicy(CLIP, encoder, ChunkDenoiser(32, 1), sampling=Sampling(steps=2), **options).eval()


def test_rotation_vectors_are_those_of_scipy():
    turns = Rotation.random(1000, np.random.default_rng(0))
    angles = np.r_[0, 1e-15, 1e-9, 1e-3, 3.1, np.pi - 1e-9, np.pi]
    turns = Rotation.concatenate([turns, Rotation.from_rotvec(angles[:, None] * [0.6, 0, 0.8])])
    found = vector_from_quaternion(torch.from_numpy(turns.as_quat()))
    wanted = turns.as_rotvec()
    np.testing.assert_allclose(found[:-1].numpy(), wanted[:-1], atol=1e-12)
    back = rotation_from_vector(found).numpy()  # at half a turn both signs of the axis are right
    np.testing.assert_allclose(back, turns.as_matrix(), atol=1e-12)


def test_actions_come_back_from_their_numbers():
    turns = Rotation.random(40, np.random.default_rng(1)).as_quat().reshape(5, 8, 4)
    place, grip = np.random.default_rng(2).random((5, 8, 3)), np.random.default_rng(3).random((5, 8, 1))
    actions = torch.from_numpy(np.concatenate([place, turns, grip], axis=-1)).float()
    scale, now = RelativeActions(), actions[:, 3]
    back = scale.decode(scale.encode(actions, now), now)
    torch.testing.assert_close(back[..., [0, 1, 2, 7]], actions[..., [0, 1, 2, 7]], atol=1e-6, rtol=1e-5)
    cosine = (back[..., 3:7] * actions[..., 3:7]).sum(-1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert float(scale.encode(actions, now)[:, 3, :6].abs().max()) < 1e-6  # the present pose is the origin


def moved(cameras: Cameras, way: torch.Tensor) -> Cameras:
    poses = cameras.world_from_camera.clone()
    poses[..., :3, 3] += way
    return Cameras(cameras.intrinsics, poses)


def test_a_world_moved_as_a_whole_moves_the_rays_of_no_token():
    """Rays are taken about the tool, in the axes of the world."""
    encoder, batch = policy().encoder, batch_of()
    way, now, words = torch.tensor([0.3, -0.2, 0.1]), batch.actions[:, 0, :3], torch.randn(3, 64)
    cameras = batch.cameras[:, :, 0]
    seen = encoder(batch.video[:, :, :, 0], cameras, now, words)
    torch.testing.assert_close(
        encoder(batch.video[:, :, :, 0], moved(cameras, way), now + way, words), seen, atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(encoder(batch.video[:, :, :, 0], moved(cameras, way), now, words), seen)


def test_rays_can_be_left_out():
    blind = policy(encoder=ViewEncoder(options=GROUPS, keypoints=4, width=32, rays=False))
    seen = batch_of().observation
    there = replace(seen, cameras=moved(seen.cameras, torch.tensor([0.3, 0, 0])))
    assert torch.equal(blind.predict_action(seen).actions, blind.predict_action(there).actions)
    there = policy().predict_action(there).actions
    assert not torch.allclose(policy().predict_action(seen).actions, there, atol=1e-5)


def test_a_missing_view_and_a_lost_calibration_are_not_looked_at():
    model, seen = policy(), batch_of().observation
    mask = seen.view_mask.clone()
    mask[:, 1] = False
    without = replace(seen, view_mask=mask)
    noise = torch.cat([seen.video[:, :1], torch.randn_like(seen.video[:, 1:])], dim=1)
    lost = seen.cameras.world_from_camera.clone()
    lost[:, 1] = torch.nan
    broken = replace(without, video=noise, cameras=Cameras(seen.cameras.intrinsics, lost))
    plain = model.predict_action(without).actions
    assert torch.equal(plain, model.predict_action(broken).actions)
    assert not torch.allclose(plain, model.predict_action(seen).actions, atol=1e-5)
    uncalibrated = replace(seen, cameras=Cameras(seen.cameras.intrinsics, lost))
    assert bool(model.predict_action(uncalibrated).actions.isfinite().all())


def test_steps_without_a_recorded_action_do_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DiffusionPolicy, "log", lambda *_, **__: None)
    batch, model = batch_of(), policy()
    valid = batch.action_valid.clone()
    valid[0, 5:] = False
    valid[1, 0] = False  # no present pose: nothing is known of the row
    known = batch.actions * valid[..., None]
    other = torch.where(valid[..., None], batch.actions, torch.tensor([9.0, 9, 9, 0, 0, 0, 1, 1]))
    losses = [
        model.training_step(replace(batch, actions=actions, action_valid=valid), 0)
        for actions in (known, other)
    ]
    assert torch.equal(*losses)


def test_pretrained_pictures_are_those_of_timm(tmp_path: Path):
    """Weights that timm saved, read at a level of features as timm itself gives them."""
    genuine = timm.create_model("resnet18", num_classes=10).eval()
    for norm in genuine.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
    file = tmp_path / "resnet18.safetensors"
    save_file(genuine.state_dict(), file)
    encoder = ViewEncoder(pretrained=str(file), level=2)
    encoder.fit_to(2, 64)
    features = timm.create_model("resnet18", features_only=True, out_indices=[2]).eval()
    features.load_state_dict(genuine.state_dict(), strict=False)
    pictures = torch.rand(2, 3, 64, 64)
    found: list[torch.Tensor] = []
    encoder.stem.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    encoder.train()(
        2 * pictures[None] - 1, batch_of(1).cameras[:, :, 0], torch.zeros(1, 3), torch.randn(1, 64)
    )
    mean, std = (
        torch.tensor(timm.data.constants.IMAGENET_DEFAULT_MEAN),
        torch.tensor(timm.data.constants.IMAGENET_DEFAULT_STD),
    )
    wanted = features((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1))[0]
    torch.testing.assert_close(found[0], wanted)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_other_networks_of_timm_give_pictures_too(name: str):
    options = {"img_size": 32} if name.startswith("vit") else {}
    encoder = ViewEncoder(name, options=options, keypoints=4, width=32)
    chunk = policy(encoder=encoder).predict_action(batch_of().observation)
    assert bool(chunk.actions.isfinite().all())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViewEncoder("resnet_18"), "timm has no network 'resnet_18'"),
        (lambda: ViewEncoder("resnet18"), "batch normalisations.*set pretrained"),
        (lambda: ViewEncoder(options=GROUPS, level=7), "resnet18 has 5 levels, got level 7"),
        (lambda: policy(encoder=ViewEncoder(options=GROUPS, width=64)), "encoder.width is 64"),
        (lambda: ChunkDenoiser(36, heads=4), "width 36 must be a multiple"),
        (lambda: DiffusionPolicy(CLIP, sampling=Sampling(guidance=2.0)), "not guided, got guidance 2"),
        (lambda: RelativeActions(metres=0.0), "metres must be finite and above 0, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said(build: object, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_frames_that_were_not_decoded_are_refused():
    batch = batch_of()
    blank = replace(batch, video_valid=torch.zeros_like(batch.video_valid))
    with pytest.raises(ValueError, match=r"a first frame was not decoded.*leave data\.cache out"):
        policy().predict_step(blank, 0)
