"""Wan (arXiv 2503.20314) through diffusers: WanTransformer3DModel, AutoencoderKLWan and UMT5, or a tiny twin.

Reading order: the video autoencoder, then the backbone.
"""

from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from ai_wam.canvas import Canvas, condition_channels
from ai_wam.noise import FlowMatching, NoisePath, TimeSampling
from ai_wam.types import LatentSpec
from backbones.adapter import ConditionedInput, conditioned
from backbones.base import Prediction, VideoBackbone
from backbones.codec import LatentCodec
from backbones.loading import load_denoiser, load_part, or_released
from backbones.prompts import Context, PromptEncoder
from backbones.t5 import T5Prompts


class WanVAE(LatentCodec):
    """Wan's causal video autoencoder (2.1: 16 channels, 8x; 2.2: 48 channels, 16x), normalised per channel.

    It is exactly causal: the first latent frame of a clip equals the first frame encoded alone.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        dtype: the weights' precision.
    """

    def __init__(self, pretrained: str, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        self.vae = load_part(AutoencoderKLWan, pretrained, "vae", getattr(torch, dtype))
        config = self.vae.config
        self.channels = config.z_dim
        self.spatial_stride, self.temporal_stride = config.scale_factor_spatial, config.scale_factor_temporal
        self.frame_multiple = self.temporal_stride
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.latents_std).view(shape), persistent=False)

    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """The posterior's mode, normalised."""
        latents = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video, clamped to [-1, 1]."""
        video: Tensor = self.vae.decode(
            (latents * self.std + self.mean).to(self.vae.dtype), return_dict=False
        )[0]
        return video.float().clamp(-1, 1)


class Wan(VideoBackbone):
    """A Wan denoiser on the canvas.

    Args:
        pretrained: local folder or hub id in diffusers' layout (transformer, vae, text_encoder, tokenizer).
        transformer: configuration of a WanTransformer3DModel to be built from scratch instead; latent
            channels and text width are filled in.
        codec: video autoencoder; the pretrained one if left out.
        prompts: prompt encoder; the pretrained one if left out.
        path: noise path; flow matching with Wan 2.2's sampler shift of 5 if left out.
        prediction: what the network's output means; released weights are "native".
        time: "per_token" tells given positions the time 0 (Wan 2.2 TI2V), "shared" tells all the same.
        prompt_modulation: whether the pooled prompt also scales and shifts the input tokens.
        dtype: precision in which pretrained weights are loaded.

    Raises:
        ValueError: neither or both of `pretrained` and `transformer`, or a part is missing.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        transformer: dict[str, Any] | None = None,
        codec: LatentCodec | None = None,
        prompts: PromptEncoder | None = None,
        path: NoisePath | None = None,
        prediction: Prediction = "native",
        time: Literal["per_token", "shared"] = "per_token",
        prompt_modulation: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        codec = or_released(codec, "codec", pretrained, WanVAE)
        prompts = or_released(prompts, "prompts", pretrained, _umt5)
        channels = {"in_channels": codec.channels, "out_channels": codec.channels}
        denoiser = load_denoiser(
            WanTransformer3DModel,
            pretrained,
            transformer,
            getattr(torch, dtype),
            **channels,
            text_dim=prompts.width,
        )
        _, patch, _ = denoiser.config.patch_size
        spec = LatentSpec(
            codec.channels,
            codec.spatial_stride,
            codec.temporal_stride,
            codec.frame_multiple,
            patch,
            pack_axis="time",
        )
        _check_channels(denoiser, spec)
        pooled = prompts.width if prompt_modulation else 0
        denoiser.patch_embedding = ConditionedInput(
            denoiser.patch_embedding, condition_channels(spec), pooled
        )
        super().__init__(
            denoiser,
            codec,
            prompts,
            path or FlowMatching(sampling=TimeSampling(shift=5.0), sampler_shift=5.0),
            spec,
            prediction,
            frozen_in_checkpoint=pretrained is None,
        )
        self.time, self.prompt_modulation = time, prompt_modulation

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer."""
        pooled = context.pooled if self.prompt_modulation else None
        time = self.path.model_time(u)
        if self.time == "per_token":
            p = self.spec.patch
            generated = ~canvas.given[:, 0, :, ::p, ::p].flatten(1)  # b n
            time = time[:, None] * generated
        prediction: Tensor = self.denoiser(
            hidden_states=conditioned(noisy, canvas.condition, pooled),
            timestep=time,
            encoder_hidden_states=context.tokens.to(noisy),
            return_dict=False,
        )[0]
        return prediction


def _umt5(pretrained: str) -> PromptEncoder:
    return T5Prompts(pretrained, encoder="UMT5EncoderModel", length=512, padding="zeros")


def _check_channels(denoiser: WanTransformer3DModel, spec: LatentSpec) -> None:
    channels = denoiser.config.in_channels
    if channels != spec.channels or denoiser.config.patch_size[0] != 1:
        raise ValueError(
            f"Wan: the transformer takes {channels} latent channels in patches "
            f"{tuple(denoiser.config.patch_size)}, the video autoencoder makes {spec.channels}; this "
            "backbone needs equal channels and a temporal patch of 1 (text-to-video or TI2V weights; "
            "image-to-video weights with extra channels are another model)"
        )
