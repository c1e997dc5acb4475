"""Every codec is as causal as it says, and those of shipped models keep action images readable.

A new codec is found and must be given a size.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import backbones
from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.cli.shipped_configs import config_path
from ai_wam.files.json_yaml import read_yaml
from backbones.codecs.base import LatentCodec
from backbones.codecs.patch import PatchCodec
from backbones.cogvideox import CogVideoXVAE
from backbones.ltx import LTXVAE
from backbones.mochi import MochiVAE
from backbones.svd import SVDVAE
from backbones.wan import WanVAE
from benchmarks.simulators.tabletop import camera_rigs

_LTX = {"latent_channels": 8, "block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5}
_LTX_OF_0_9_0 = {**_LTX, "decoder_block_out_channels": (8,) * 4, "decoder_layers_per_block": (1,) * 5}
_COGVIDEOX = {
    "block_out_channels": (8, 8, 8, 16), "latent_channels": 16, "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4,
}  # fmt: skip
_WAN_2_2 = {
    "base_dim": 8, "decoder_base_dim": 8, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1,
    "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    "latents_mean": [0.1] * 48, "latents_std": [0.9] * 48,
}  # fmt: skip
TINY: dict[type[LatentCodec], dict[str, dict[str, Any]]] = {
    PatchCodec: {"patches": {}},
    WanVAE: {"2.1": {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1}, "2.2": _WAN_2_2},
    CogVideoXVAE: {"all": _COGVIDEOX},
    LTXVAE: {"0.9.0": _LTX_OF_0_9_0, "looking back": {**_LTX_OF_0_9_0, "decoder_causal": True}},
    MochiVAE: {
        "1": {
            "encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4,
            "layers_per_block": (1,) * 5,
        }
    },
    SVDVAE: {
        "all": {
            "block_out_channels": (32, 32), "layers_per_block": 1,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
        }
    },
}  # fmt: skip
CODECS = [(kind, sizes) for kind, known in TINY.items() for sizes in known.values()]
NAMES = [f"{kind.__name__} {name}" for kind, known in TINY.items() for name in known]


@pytest.fixture(scope="module", params=CODECS, ids=NAMES)
def codec(request: pytest.FixtureRequest) -> LatentCodec:
    torch.manual_seed(0)
    kind, architecture = request.param
    return kind() if kind is PatchCodec else kind(architecture=architecture).eval()


@pytest.fixture(scope="module")
def video(codec: LatentCodec) -> Tensor:
    """Three blocks of frames after the first, four cells large."""
    frames, side = 3 * codec.frame_multiple + 1, 2 * codec.spatial_stride
    return torch.rand(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def latents(codec: LatentCodec, video: Tensor) -> Tensor:
    return codec.encode(video)


@pytest.fixture(scope="module")
def decoded(codec: LatentCodec, latents: Tensor) -> Tensor:
    return codec.decode(latents)


def beginnings(codec: LatentCodec) -> Iterator[tuple[int, int]]:
    """Frames and latent frames of beginnings that its `causal` speaks of."""
    for blocks in range(int(codec.causal == "blocks"), 3):
        frames = blocks * codec.frame_multiple + 1
        yield frames, 1 + (frames - 1) // codec.temporal_stride


def differs(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) > 1e-4 * float(other.abs().max())


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_every_codec_is_here():
    modules = [
        importlib.import_module(each.name) for each in pkgutil.walk_packages(backbones.__path__, "backbones.")
    ]
    kinds = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    assert {k for k in kinds if issubclass(k, LatentCodec) and not inspect.isabstract(k)} == set(TINY)


def test_a_beginning_encoded_alone_is_the_beginning_of_the_whole(
    codec: LatentCodec, video: Tensor, latents: Tensor
):
    for frames, count in beginnings(codec):
        same(codec.encode(video[:, :, :frames]), latents[:, :, :count])
    if codec.causal == "blocks":
        assert differs(codec.encode(video[:, :, :1]), latents[:, :, :1])


def test_later_frames_change_no_earlier_latents(codec: LatentCodec, video: Tensor, latents: Tensor):
    for frames, count in beginnings(codec):
        changed = video.clone()
        changed[:, :, frames:] = -changed[:, :, frames:]
        found = codec.encode(changed)
        same(found[:, :, :count], latents[:, :, :count])
        assert differs(found[:, :, count:], latents[:, :, count:])
    if codec.causal == "blocks":  # a first latent that would be blind to what follows could be encoded alone
        changed = torch.cat([video[:, :, :1], -video[:, :, 1:]], dim=2)
        assert differs(codec.encode(changed)[:, :, :1], latents[:, :, :1])


def test_a_beginning_decoded_alone_is_the_beginning_of_the_whole(
    codec: LatentCodec, latents: Tensor, decoded: Tensor
):
    alone = {frames: codec.decode(latents[:, :, :count]) for frames, count in beginnings(codec)}
    assert all(video.shape[2] == frames for frames, video in alone.items())
    if codec.causal == "encoder":
        assert all(differs(video, decoded[:, :, :frames]) for frames, video in alone.items())
        return
    for frames, video in alone.items():
        same(video, decoded[:, :, :frames])
    if codec.causal == "blocks":
        assert differs(codec.decode(latents[:, :, :1])[:, :, :1], decoded[:, :, :1])


def test_later_latents_change_no_earlier_frames(codec: LatentCodec, latents: Tensor, decoded: Tensor):
    for frames, count in beginnings(codec):
        changed = torch.cat([latents[:, :, :count], -latents[:, :, count:]], dim=2)
        found = codec.decode(changed)
        assert differs(found[:, :, frames:], decoded[:, :, frames:])
        if codec.causal == "encoder":
            assert differs(found[:, :, :frames], decoded[:, :, :frames])
        else:
            same(found[:, :, :frames], decoded[:, :, :frames])


# ---------------------------------------------------------------------- action images through shipped codecs

PATCHED = {
    path.stem: settings["codec"]["init_args"]
    for path in sorted(Path(config_path("configs/backbone")).glob("*.yaml"))
    if (settings := read_yaml(path)["init_args"])
    .get("codec", {})
    .get("class_path", "")
    .endswith("PatchCodec")
}


def reaches(count: int = 40) -> tuple[Tensor, Cameras]:
    """Minimum-jerk motions across the tabletop's wide box in 1.2 s, 5 frames a second, and its cameras."""
    box, rng = camera_rigs.WORKSPACES["wide"], np.random.default_rng(0)
    times = np.clip(np.arange(9) / 6, 0, 1)
    done = times**3 * (10 - 15 * times + 6 * times**2)
    ends = np.stack([[box.sample(rng), box.sample(rng)] for _ in range(count)])
    actions = np.zeros((count, 9, 8))
    actions[..., :3] = ends[:, 0, None] + done[None, :, None] * (ends[:, 1] - ends[:, 0])[:, None]
    actions[..., 4], actions[..., 7] = 1, 1
    mounts, matrices, intrinsics = camera_rigs.mounts("wide", box), [], []
    for mount in (mounts["front"], mounts["left_shoulder"]):
        axes = np.stack([mount.right, mount.up, np.cross(mount.right, mount.up), mount.position], axis=1)
        matrices.append(np.concatenate([axes, [[0, 0, 0, 1]]]))
        focal = 32 / np.tan(np.radians(mount.fov) / 2)
        intrinsics.append([[focal, 0, 32], [0, focal, 32], [0, 0, 1]])
    cameras = Cameras.from_opengl(torch.tensor(np.array(intrinsics)), torch.tensor(np.array(matrices)))
    return torch.from_numpy(actions), cameras.map(lambda m: m[None, :, None].expand(count, -1, 9, -1, -1))


@pytest.mark.parametrize("name", PATCHED)
def test_action_images_are_read_through_the_codecs_of_shipped_models(name: str) -> None:
    """Blobs of fast motions stay where they are: a policy cannot be more exact than its codec."""
    codec, tokenizer = PatchCodec(**PATCHED[name]), ActionImageTokenizer()
    actions, cameras = reaches()
    images = 2 * tokenizer.encode(actions, cameras, (64, 64)) - 1
    coded = codec.decode(codec.encode(images.flatten(0, 1).float())).view_as(images)
    exact, read = (tokenizer.decode((each + 1) / 2, cameras) for each in (images, coded))
    seen = exact.valid  # some motions leave the picture
    assert seen.double().mean() > 0.9
    assert read.valid[seen].double().mean() > 0.97
    error = 1000 * (read.actions - actions)[..., :3].norm(dim=-1)[seen & read.valid]
    assert error.quantile(0.95) < (30 if codec.channels < 48 else 8)  # millimetres; a pixel is 14
