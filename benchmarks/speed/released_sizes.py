"""Released models at full size, by their published configurations, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.errors import InvalidValue
from backbones.base import VideoBackbone
from backbones.cogvideox import CogVideoX, CogVideoXVAE
from backbones.conditions.image_encoders import ImageEncoder
from backbones.conditions.prompts import HashedWords
from backbones.cosmos import Cosmos
from backbones.ltx import LTX, LTXVAE
from backbones.mochi import Mochi, MochiVAE
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


def _wan_i2v(layers: int = 40, **options: Any) -> VideoBackbone:
    size = {"num_attention_heads": 40, "ffn_dim": 13824, "in_channels": 36, "added_kv_proj_dim": 5120}
    conditions = {
        "images": _Embedding(257, 1280),
        "known_observation": False,
        "codec": WanVAE(architecture={}),
    }
    parts = {"prompts": HashedWords(4096, 512), "time": "shared", **conditions}
    return Wan(**{"architecture": {**size, "num_layers": layers}, **parts, **options})


def _cogvideox(heads: int, layers: int, **architecture: Any) -> Callable[..., VideoBackbone]:
    def build(layers: int = layers, **options: Any) -> VideoBackbone:
        size = {"num_attention_heads": heads, "num_layers": layers, "time_embed_dim": 512, **architecture}
        parts: dict[str, Any] = {
            "codec": CogVideoXVAE(architecture=_COGVIDEOX_VAE),
            "prompts": HashedWords(4096, 226),
        }
        parts["known_observation"] = "in_channels" not in architecture
        return CogVideoX(**{"architecture": size, **parts, **options})

    return build


class _Embedding(ImageEncoder):
    """Of the shape of CLIP's tokens, without CLIP.

    Args:
        tokens: per picture.
        width: of a token.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k d"]:
        """Zeros."""
        return images.new_zeros(len(images), self.tokens, self.width)


def _svd(layers: int = 2, **options: Any) -> VideoBackbone:
    parts = {"codec": SVDVAE(architecture=_SVD_VAE), "prompts": HashedWords(1024, 16), "time": "per_frame"}
    conditions = {"images": _Embedding(1, 1024), "known_observation": False}
    model = SVD(**{"architecture": {"layers_per_block": layers}, **parts, **conditions, **options})
    return model.to(torch.get_default_device())  # diffusers creates its mixing factors on the CPU


def _ltx(heads: int, width: int, layers: int) -> Callable[..., VideoBackbone]:
    def build(layers: int = layers, **options: Any) -> VideoBackbone:
        size = {"num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers}
        size["cross_attention_dim"] = heads * width
        parts = {"codec": LTXVAE(architecture={}), "prompts": HashedWords(4096, 128), "time": "per_token"}
        return LTX(**{"architecture": size, **parts, **options})

    return build


def _cosmos(heads: int, layers: int) -> Callable[..., VideoBackbone]:
    def build(layers: int = layers, **options: Any) -> VideoBackbone:
        size = {"num_attention_heads": heads, "num_layers": layers, "extra_pos_embed_type": None}
        parts = {"codec": WanVAE(architecture={}), "prompts": HashedWords(1024, 512), "time": "per_frame"}
        return Cosmos(**{"architecture": size, **parts, **options})

    return build


def _mochi(layers: int = 48, **options: Any) -> VideoBackbone:
    parts = {"codec": MochiVAE(architecture={}), "prompts": HashedWords(4096, 256)}
    return Mochi(**{"architecture": {"num_layers": layers}, **parts, **options})


_COGVIDEOX_I2V = {  # its learned positions are for one size
    "in_channels": 32, "use_learned_positional_embeddings": True, "sample_height": 60, "sample_width": 90,
}  # fmt: skip
_ROTARY = {"use_rotary_positional_embeddings": True}

SIZES: dict[str, Callable[..., VideoBackbone]] = {
    "wan2.1-1.3b": _wan(12, 8960, 30, "shared", {}),
    "wan2.2-5b": _wan(24, 14336, 30, "per_token", _WAN22_VAE),
    "wan2.1-14b": _wan(40, 13824, 40, "shared", {}),
    "wan2.1-i2v-14b": _wan_i2v,
    "cogvideox-2b": _cogvideox(30, 30),
    "cogvideox-5b": _cogvideox(48, 42, **_ROTARY),
    "cogvideox-5b-i2v": _cogvideox(48, 42, **_ROTARY, **_COGVIDEOX_I2V),
    "cogvideox1.5-5b": _cogvideox(48, 42, **_ROTARY, patch_size_t=2),
    "cogvideox1.5-5b-i2v": _cogvideox(48, 42, **_ROTARY, patch_size_t=2, in_channels=32, ofs_embed_dim=512),
    "svd": _svd,
    "ltx-video-2b": _ltx(32, 64, 28),
    "ltx-video0.9.7-13b": _ltx(32, 128, 48),
    "cosmos-predict2-2b": _cosmos(16, 28),
    "cosmos-predict2-14b": _cosmos(40, 36),
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
        raise InvalidValue(f"unknown model {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name](**options)
