"""LTX-Video (arXiv 2501.00103) through diffusers: transformer, video autoencoder and T5, or a tiny twin.

Reading order: the video autoencoder, the prompts, the network, the backbone.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import FlowMatching, NoisePath, TimeSampling
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.codecs.autoencoder import NormalizedAutoencoder
from backbones.codecs.base import LatentCodec
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.conditions.t5 import T5Prompts


class LTXVAE(NormalizedAutoencoder):
    """LTX-Video's video autoencoder: 128 channels, 32x in space, 8x in time, normalized per channel.

    The encoder is exactly causal; the decoder looks ahead. Since 0.9.1 the decoder also denoises and is
    conditioned on the noise level of its latents: here 0, as the pipelines have it by default, since ours are
    clean. 0.9.1 alone draws noise inside the decoder; it is drawn from one seed, so that latents always give
    the same video.
    """

    Autoencoder = AutoencoderKLLTXVideo

    def configure(self, config: Any) -> None:
        """Statistics are buffers that the checkpoint brings."""
        self.channels = config.latent_channels
        self.spatial_stride = self.vae.spatial_compression_ratio
        self.temporal_stride = self.frame_multiple = self.vae.temporal_compression_ratio
        self.causal = "exact" if config.decoder_causal else "encoder"
        self.set_statistics(self.vae.latents_mean, self.vae.latents_std, config.scaling_factor)

    def decode_raw(self, raw: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video, with the decoder's own noise from one seed."""
        noise = raw.new_zeros(len(raw)) if self.vae.config.timestep_conditioning else None
        with torch.random.fork_rng([raw.device] if raw.is_cuda else []):
            torch.manual_seed(0)
            video: Tensor = self.vae.decode(raw, noise, return_dict=False)[0]
        return video


class LTXPrompts(T5Prompts):
    """T5 v1.1-XXL as in LTX-Video before 0.9.5: padding enters the encoder, but not the denoiser.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        options: `dtype`, `device` and `cache` of `backbones.conditions.t5.T5Prompts`.
    """

    def __init__(self, pretrained: str, **options: Any) -> None:
        super().__init__(pretrained, encoder="T5EncoderModel", length=128, padding="states", **options)

    def _embed(self, prompt: str, device: torch.device) -> tuple[Tensor, int]:
        """States "l d" of one prompt, zeros after its end, and how many of them are its own."""
        states, count = super()._embed(prompt, device)
        states[count:] = 0
        return states, count


class LTXTransformer(LTXVideoTransformer3DModel):
    """diffusers' LTX-Video with its time embedding in float32."""

    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_embed"]


class LTX(VideoBackbone):
    """An LTX-Video denoiser on the canvas, 0.9.0 and 0.9.1; see `LTX095` for later ones.

    One network makes videos of texts and of pictures: given positions hold clean latents, with a diffusion
    time per token. A token is one latent position. Text tokens after the prompt's end, which are zeros, are
    not attended to.

    Args:
        pretrained: local folder or hub id of a released checkpoint.
        fps: frames per second, a condition of the network; its positions count seconds.
        options: the other arguments of `backbones.base.VideoBackbone`.
    """

    Denoiser = LTXTransformer
    input_projection = "proj_in"
    blocks = ("transformer_blocks",)
    times = ("per_token", "shared")
    fp32_parts = ("rope",)

    def __init__(self, pretrained: str | None = None, *, fps: int = 25, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.fps = fps

    def released_codec(self, pretrained: str) -> LatentCodec:
        """LTX-Video's video autoencoder."""
        return LTXVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """T5 v1.1-XXL."""
        return LTXPrompts(pretrained)

    def released_path(self) -> NoisePath:
        """Flow matching; the released shift grows with the tokens, from 2.6 at 1,024 to 7.8 at 4,096."""
        return FlowMatching(sampling=TimeSampling(shift=5.0), sampler_shift=5.0)

    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels and text width."""
        channels = self.codec.channels
        return {
            "in_channels": channels,
            "out_channels": channels,
            "caption_channels": self.prompts.width,
        }

    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """Equal channels, tokens of one position."""
        codec, taken, made = self.codec, config["in_channels"], config["out_channels"]
        patches = (config["patch_size_t"], config["patch_size"])
        if (taken, made) != (codec.channels, codec.channels) or patches != (1, 1):
            raise InvalidValue(
                f"LTX: the transformer takes {taken} channels and makes {made} in patches of {patches}, the "
                f"video autoencoder makes {codec.channels}; this backbone needs {codec.channels} in and out "
                "and patches of (1, 1): take both from one release"
            )
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        return LatentSpec(codec.channels, *strides, patch=1)

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer, which wants tokens; its positions count on over the canvas."""
        f, h, w = noisy.shape[2:]
        seen = rearrange(self.network_input(noisy, canvas, context), "b e f h w -> b (f h w) e")
        prediction: Tensor = self.denoiser(
            hidden_states=seen,
            encoder_hidden_states=context.tokens.to(noisy),
            timestep=self.network_time(u, canvas),
            encoder_attention_mask=context.tokens.ne(0).any(dim=2),
            video_coords=self._positions((f, h, w), noisy.device).expand(len(noisy), -1, -1),
            return_dict=False,
        )[0]
        return rearrange(prediction, "b (f h w) c -> b c f h w", f=f, h=h, w=w)

    def _positions(self, grid: tuple[int, int, int], device: torch.device) -> Float[Tensor, "1 3 n"]:
        """Seconds, row and column in pixels of every token."""
        stride = self.codec.spatial_stride
        f, h, w = (torch.arange(n, device=device) for n in grid)
        axes = (self._first_frames(f) / self.fps, h * float(stride), w * float(stride))
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[None]

    def _first_frames(self, latent: Int[Tensor, "f"]) -> Int[Tensor, "f"]:
        """The video frame at which the network takes a latent frame to begin."""
        return latent * self.codec.temporal_stride


class LTX095(LTX):
    """An LTX-Video denoiser on the canvas, 0.9.5 and later: 2B, and 13B from 0.9.7 on.

    It knows that the first latent frame is one video frame, so later ones begin earlier, and its prompts are
    longer. The released pipeline also adds a little noise to the given picture; here it stays as it is.
    """

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """T5 v1.1-XXL; tokens after the prompt's end are zeros."""
        return T5Prompts(pretrained, encoder="T5EncoderModel", length=256, padding="zeros")

    def _first_frames(self, latent: Int[Tensor, "f"]) -> Int[Tensor, "f"]:
        """The video frame with which a latent frame does begin."""
        return (latent * self.codec.temporal_stride + 1 - self.codec.temporal_stride).clamp(min=0)
