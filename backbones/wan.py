"""Wan (arXiv 2503.20314) through diffusers: WanTransformer3DModel, AutoencoderKLWan and UMT5, or a tiny twin.

Reading order: the video autoencoder, then the backbone.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ai_wam.canvas import Canvas
from ai_wam.noise import FlowMatching, NoisePath, TimeSampling
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.codec import LatentCodec
from backbones.images import CLIPImages, ImageEncoder
from backbones.loading import load_part
from backbones.prompts import Context, PromptEncoder
from backbones.t5 import T5Prompts


class WanVAE(LatentCodec):
    """Wan's causal video autoencoder (2.1: 16 channels, 8x; 2.2: 48 channels, 16x), normalised per channel.

    It is exactly causal: the first latent frame of a clip equals the first frame encoded alone.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        dtype: the weights' precision.
    """

    causal = "exact"

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
    """A Wan denoiser on the canvas: text to video (2.1), image to video (2.1) or both (2.2 TI2V).

    An image-to-video network sees, beside the noisy latents, which frames are given (one channel per video
    frame of a latent frame) and the latents of a clip whose later frames are grey; given frames stand there
    as they are. Its image tokens are those of every view, one after the other.
    """

    Denoiser = WanTransformer3DModel
    input_projection = "patch_embedding"
    blocks = ("blocks",)
    times = ("per_token", "shared")

    TEXT_LENGTH = 512  # image-to-video attention splits image and text tokens at this number

    def released_codec(self, pretrained: str) -> LatentCodec:
        """Wan's video autoencoder."""
        return WanVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """UMT5-XXL; tokens after the prompt's end are zeros."""
        return T5Prompts(pretrained, encoder="UMT5EncoderModel", length=self.TEXT_LENGTH, padding="zeros")

    def released_images(self, pretrained: str, config: Mapping[str, Any]) -> ImageEncoder | None:
        """CLIP's patches, for networks that take them."""
        if config["image_dim"] is None:
            return None
        return CLIPImages(pretrained, features="penultimate", processor="image_processor")

    def released_path(self) -> NoisePath:
        """Flow matching with the shift of Wan 2.2 TI2V."""
        return FlowMatching(sampling=TimeSampling(shift=5.0), sampler_shift=5.0)

    def widths(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels, text width and image width."""
        channels = self.codec.channels
        taken = architecture.get("in_channels", channels)
        widths = {"in_channels": taken, "out_channels": channels, "text_dim": self.prompts.width}
        return widths if self.images is None else {**widths, "image_dim": self.images.width}

    def describe(self, config: Mapping[str, Any]) -> LatentSpec:
        """Equal channels, or those of an image-to-video network."""
        codec, taken = self.codec, config["in_channels"]
        shown = 2 * codec.channels + codec.temporal_stride
        if taken not in (codec.channels, shown) or config["out_channels"] != codec.channels:
            raise ValueError(
                f"Wan: the transformer takes {taken} channels and makes {config['out_channels']}, the video "
                f"autoencoder makes {codec.channels}; this backbone needs {codec.channels} (text to video) "
                f"or {shown} (image to video) in, {codec.channels} out: take both from one release"
            )
        steps, patch, _ = config["patch_size"]
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        return LatentSpec(codec.channels, *strides, patch=patch, patch_time=steps)

    def shows_image(self, config: Mapping[str, Any]) -> bool:
        """Image-to-video networks take more channels than the codec makes."""
        return bool(config["in_channels"] != self.codec.channels)

    def encode_still(
        self, first: Float[Tensor, "b v 3 1 h w"], latents: Float[Tensor, "b v c 1 lh lw"], frames: int
    ) -> Float[Tensor, "b v c tl lh lw"] | None:
        """Latents of the first frame followed by grey, for image-to-video networks."""
        if not self.shows_image(self.denoiser.config):
            return None
        grey = torch.zeros_like(first).expand(-1, -1, -1, frames - 1, -1, -1)
        return self.encode(torch.cat([first, grey], dim=3))

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer."""
        text, native = context.tokens.to(noisy), None
        if canvas.image is not None:
            image = torch.where(canvas.given, canvas.clean, canvas.image)
            given = canvas.given.to(noisy).expand(-1, self.codec.temporal_stride, -1, -1, -1)
            native = torch.cat([given, image], dim=1)
        if context.images is not None:
            text = functional.pad(text, (0, 0, 0, self.TEXT_LENGTH - text.shape[1]))
        prediction: Tensor = self.denoiser(
            hidden_states=self.network_input(noisy, canvas, context, native),
            timestep=self.network_time(u, canvas),
            encoder_hidden_states=text,
            encoder_hidden_states_image=None if context.images is None else context.images.to(noisy),
            return_dict=False,
        )[0]
        return prediction
