"""Released models at full size, by their published configurations, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from backbones.base import VideoBackbone
from backbones.cogvideox import CogVideoX, CogVideoXVAE
from backbones.cosmos import Cosmos
from backbones.images import ImageEncoder
from backbones.ltx import LTX, LTXVAE
from backbones.mochi import Mochi, MochiVAE
from backbones.prompts import HashedWords
from backbones.svd import SVD, SVDVAE
from backbones.wan import Wan, WanVAE

_WAN22_VAE = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
    "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
_COGVIDEOX_VAE = {
    "block_out_channels": (128, 256, 256, 512), "latent_channels": 16, "layers_per_block": 3,
    "down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4,
}  # fmt: skip
_SVD_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "latent_channels": 4,
}  # fmt: skip


def _wan(heads: int, ffn: int, layers: int, time: str, vae: dict[str, Any]) -> Callable[..., VideoBackbone]:
    def build(layers: int = layers, **options: Any) -> VideoBackbone:
        size = {"num_attention_heads": heads, "ffn_dim": ffn, "num_layers": layers}
        parts = {"codec": WanVAE(architecture=vae), "prompts": HashedWords(4096, 512), "time": time}
        return Wan(**{"architecture": size, **parts, **options})

    return build


def _cogvideox(heads: int, layers: int, **architecture: Any) -> Callable[..., VideoBackbone]:
    def build(layers: int = layers, **options: Any) -> VideoBackbone:
        size = {"num_attention_heads": heads, "num_layers": layers, "time_embed_dim": 512, **architecture}
        parts = {"codec": CogVideoXVAE(architecture=_COGVIDEOX_VAE), "prompts": HashedWords(4096, 226)}
        return CogVideoX(**{"architecture": size, **parts, **options})

    return build


class _Embedding(ImageEncoder):
    """Of the shape of CLIP's embedding, without CLIP."""

    width = 1024

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 d"]:
        """Zeros."""
        return images.new_zeros(len(images), 1, self.width)


def _svd(layers: int = 2, **options: Any) -> VideoBackbone:
    parts = {"codec": SVDVAE(architecture=_SVD_VAE), "prompts": HashedWords(1024, 16), "time": "per_frame"}
    told = {"images": _Embedding(), "first_observation": False}
    model = SVD(**{"architecture": {"layers_per_block": layers}, **parts, **told, **options})
    return model.to(torch.get_default_device())  # diffusers creates its mixing factors on the CPU


def _ltx(layers: int = 28, **options: Any) -> VideoBackbone:
    parts = {"codec": LTXVAE(architecture={}), "prompts": HashedWords(4096, 128), "time": "per_token"}
    return LTX(**{"architecture": {"num_layers": layers}, **parts, **options})


def _cosmos(layers: int = 28, **options: Any) -> VideoBackbone:
    size = {"num_attention_heads": 16, "num_layers": layers, "extra_pos_embed_type": None}
    parts = {"codec": WanVAE(architecture={}), "prompts": HashedWords(1024, 512), "time": "per_frame"}
    return Cosmos(**{"architecture": size, **parts, **options})


def _mochi(layers: int = 48, **options: Any) -> VideoBackbone:
    parts = {"codec": MochiVAE(architecture={}), "prompts": HashedWords(4096, 256)}
    return Mochi(**{"architecture": {"num_layers": layers}, **parts, **options})


SIZES: dict[str, Callable[..., VideoBackbone]] = {
    "wan2.1-1.3b": _wan(12, 8960, 30, "shared", {}),
    "wan2.2-5b": _wan(24, 14336, 30, "per_token", _WAN22_VAE),
    "wan2.1-14b": _wan(40, 13824, 40, "shared", {}),
    "cogvideox-2b": _cogvideox(30, 30),
    "cogvideox-5b": _cogvideox(48, 42, use_rotary_positional_embeddings=True),
    "cogvideox1.5-5b": _cogvideox(48, 42, use_rotary_positional_embeddings=True, patch_size_t=2),
    "svd": _svd,
    "ltx-video-2b": _ltx,
    "cosmos-predict2-2b": _cosmos,
    "mochi-1": _mochi,
}


def build(name: str, **options: Any) -> VideoBackbone:
    """A released model with random weights, on torch's default device ("meta" takes no memory).

    Args:
        name: as its YAML is called.
        options: further arguments of the backbone; `layers`: how many blocks, the released number if left
            out.

    Raises:
        ValueError: a name that is not listed.
    """
    if name not in SIZES:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name](**options)
