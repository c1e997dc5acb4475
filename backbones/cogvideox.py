"""CogVideoX (arXiv 2408.06072) through diffusers: transformer, video autoencoder and T5, or a tiny twin.

Reading order: the video autoencoder, then the backbone.
"""

from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from ai_wam.canvas import Canvas, condition_channels
from ai_wam.noise import NoisePath, VariancePreserving
from ai_wam.types import LatentSpec
from backbones.adapter import ConditionedInput, conditioned
from backbones.base import Prediction, VideoBackbone
from backbones.codec import LatentCodec
from backbones.loading import load_denoiser, load_part, or_released
from backbones.prompts import Context, PromptEncoder
from backbones.t5 import T5Prompts


class CogVideoXVAE(LatentCodec):
    """CogVideoX's video autoencoder: 16 channels, 8x in space, 4x in time.

    It is not causal: the first latent frame of a clip has seen up to eight later frames, which is why the
    canvas takes the first frame encoded alone. Clips of 8k + 1 frames come back with as many frames as went
    in.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        dtype: the weights' precision.
    """

    def __init__(self, pretrained: str, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        self.vae = load_part(AutoencoderKLCogVideoX, pretrained, "vae", getattr(torch, dtype))
        config = self.vae.config
        self.channels, self.scale = config.latent_channels, config.scaling_factor
        self.spatial_stride = 2 ** (len(config.block_out_channels) - 1)
        self.temporal_stride = int(config.temporal_compression_ratio)
        self.frame_multiple = 2 * self.temporal_stride

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """The posterior's mode, scaled."""
        latents: Tensor = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode().float()
        return latents * self.scale

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video, clamped to [-1, 1]."""
        video: Tensor = self.vae.decode((latents / self.scale).to(self.vae.dtype), return_dict=False)[0]
        return video.float().clamp(-1, 1)


class CogVideoX(VideoBackbone):
    """A CogVideoX 1.0 text-to-video denoiser (2B, 5B) on the canvas; all positions are told one time.

    Args:
        pretrained: local folder or hub id in diffusers' layout (transformer, vae, text_encoder, tokenizer).
        transformer: configuration of a CogVideoXTransformer3DModel to be built from scratch instead; latent
            channels and text width are filled in.
        codec: video autoencoder; the pretrained one if left out.
        prompts: prompt encoder; the pretrained one if left out.
        path: noise path; the variance-preserving one with CogVideoX-5B's settings if left out.
        prediction: what the network's output means; released weights are "native".
        prompt_modulation: whether the pooled prompt also scales and shifts the input tokens.
        dtype: precision in which pretrained weights are loaded.

    Raises:
        ValueError: neither or both of `pretrained` and `transformer`, a missing part, or other weights.
    """

    denoiser: CogVideoXTransformer3DModel

    def __init__(
        self,
        pretrained: str | None = None,
        transformer: dict[str, Any] | None = None,
        codec: LatentCodec | None = None,
        prompts: PromptEncoder | None = None,
        path: NoisePath | None = None,
        prediction: Prediction = "native",
        prompt_modulation: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        codec = or_released(codec, "codec", pretrained, CogVideoXVAE)
        prompts = or_released(prompts, "prompts", pretrained, _t5)
        channels = {"in_channels": codec.channels, "out_channels": codec.channels}
        denoiser = load_denoiser(
            CogVideoXTransformer3DModel,
            pretrained,
            transformer,
            getattr(torch, dtype),
            **channels,
            text_embed_dim=prompts.width,
        )
        config = denoiser.config
        if config.in_channels != codec.channels or config.patch_size_t is not None:
            raise ValueError(
                f"CogVideoX: the transformer takes {config.in_channels} latent channels (temporal patch "
                f"{config.patch_size_t}), the video autoencoder makes {codec.channels}; this backbone takes "
                "the 1.0 text-to-video weights: equal channels, no temporal patch"
            )
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        spec = LatentSpec(codec.channels, *strides, config.patch_size)
        pooled = prompts.width if prompt_modulation else 0
        patches = denoiser.patch_embed
        patches.proj = ConditionedInput(patches.proj, condition_channels(spec), pooled)
        super().__init__(
            denoiser,
            codec,
            prompts,
            path or VariancePreserving(snr_shift=1.0),
            spec,
            prediction,
            frozen_in_checkpoint=pretrained is None,
        )
        self.prompt_modulation = prompt_modulation

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer, which wants frames before channels."""
        pooled = context.pooled if self.prompt_modulation else None
        prediction: Tensor = self.denoiser(
            hidden_states=conditioned(noisy, canvas.condition, pooled).transpose(1, 2),
            encoder_hidden_states=context.tokens.to(noisy),
            timestep=self.path.model_time(u),
            image_rotary_emb=self._rotary(noisy),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def _rotary(self, noisy: Float[Tensor, "b c f h w"]) -> tuple[Tensor, Tensor] | None:
        """Rotary positions, scaled to the training resolution as the released pipeline does; None for 2B."""
        config = self.denoiser.config
        if not config.use_rotary_positional_embeddings:
            return None
        grid = (noisy.shape[3] // config.patch_size, noisy.shape[4] // config.patch_size)
        base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
        tables: tuple[Tensor, Tensor] = get_3d_rotary_pos_embed(
            config.attention_head_dim, _region(grid, base), grid, noisy.shape[2], device=noisy.device
        )
        return tables


def _region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a token grid lies in the training grid: as large as fits, centred (top left, bottom right)."""
    scale = min(base[0] / grid[0], base[1] / grid[1])
    h, w = round(grid[0] * scale), round(grid[1] * scale)
    top, left = round((base[0] - h) / 2), round((base[1] - w) / 2)
    return (top, left), (top + h, left + w)


def _t5(pretrained: str) -> PromptEncoder:
    return T5Prompts(pretrained, encoder="T5EncoderModel", length=226, padding="states")
