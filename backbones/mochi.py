"""Mochi 1 (Genmo, 2024) through diffusers: transformer, video autoencoder and T5, or a tiny twin.

Reading order: the video autoencoder, the prompts, the noise path, the network, the backbone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_mochi import AutoencoderKLMochi
from diffusers.models.transformers.transformer_mochi import MochiRoPE, MochiTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import FlowMatching, NoisePath, TimeSampling, shifted
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from ai_wam.utils.autocast import full_precision
from backbones.base import VideoBackbone
from backbones.codecs.autoencoder import NormalizedAutoencoder
from backbones.codecs.base import LatentCodec
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.conditions.t5 import T5Prompts


class MochiVAE(NormalizedAutoencoder):
    """Mochi's video autoencoder: 12 channels, 8x in space, 6x in time, normalized per channel.

    Encoder and decoder look back only: convolutions are padded on the left, the encoder's attention over time
    is causal, and normalization is frame by frame.
    """

    Autoencoder = AutoencoderKLMochi
    causal = "exact"

    def configure(self, config: Any) -> None:
        """Statistics are in the configuration, strides are attributes of the autoencoder."""
        self.channels = config.latent_channels
        self.spatial_stride = self.vae.spatial_compression_ratio
        self.temporal_stride = self.frame_multiple = self.vae.temporal_compression_ratio
        self.set_statistics(config.latents_mean, config.latents_std, config.scaling_factor)


class MochiPrompts(T5Prompts):
    """T5 v1.1-XXL; the empty prompt has no tokens at all, as Mochi was trained.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        options: `dtype`, `device` and `cache` of `backbones.conditions.t5.T5Prompts`.
    """

    def __init__(self, pretrained: str, **options: Any) -> None:
        super().__init__(pretrained, encoder="T5EncoderModel", length=256, padding="zeros", **options)

    def encode(self, prompts: Sequence[str], device: torch.device) -> Context:
        """Last hidden states, zeros after the prompt's end."""
        context = super().encode(prompts, device)
        said = torch.tensor([bool(prompt.strip()) for prompt in prompts], device=device)
        return replace(context, tokens=context.tokens * said[:, None, None])


@dataclass(frozen=True)
class MochiFlow(FlowMatching):
    """Flow matching with time reversed: the network's time is 1000 (1 - u), its target the velocity x0 - eps.

    The sampler takes small steps near pure noise: half of its steps are equal and lead from u = 1 to
    1 - threshold, the others grow linearly on from there. At `threshold` 0.5 an even number are all equal.

    Attributes:
        threshold: noise that the first half of the steps removes, at most 0.5.
    """

    threshold: float = 0.025

    def __post_init__(self) -> None:
        """Refuse a threshold at which the steps would not grow."""
        if not 0 < self.threshold <= 0.5:
            raise InvalidValue(
                f"MochiFlow: threshold {self.threshold} must lie in (0, 0.5]; the released model's is 0.025, "
                "0.5 makes all steps equal"
            )

    def target(
        self, clean: Float[Tensor, "*n"], noise: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> Float[Tensor, "*n"]:
        """The velocity x0 - eps."""
        return clean - noise

    def invert(
        self, prediction: Float[Tensor, "*n"], noisy: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """x0 = z + u v and eps = z - (1 - u) v."""
        return super().invert(-prediction, noisy, u)

    def model_time(self, u: Float[Tensor, "*n"]) -> Tensor:
        """1000 (1 - u)."""
        return 1000 * (1 - u)

    def grid(self, steps: int) -> Float[Tensor, "n"]:
        """A straight line, and from its middle on a parabola that ends clean."""
        i, half = torch.arange(len(super().grid(steps))), steps // 2
        step = self.threshold / max(half, 1)
        u = 1 - step * i - (1 - step * steps) * ((i - half).clamp(min=0) / (steps - half)) ** 2
        u[-1] = 0
        return shifted(u, self.sampler_shift)


class FP32RoPE(MochiRoPE):
    """diffusers' rotary positions; its own angles ask autocast for float32, which autocast warns it lacks."""

    def _create_rope(
        self, freqs: Float[Tensor, "3 heads d"], pos: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n heads d"], Float[Tensor, "n heads d"]]:
        with full_precision(freqs.device):
            angles = torch.einsum("nd,dhf->nhf", pos.float(), freqs.float())
        return angles.cos(), angles.sin()


class AdaptedMochi(MochiTransformer3DModel):
    """diffusers' Mochi transformer, with what a network that learns needs.

    Nothing comes of what the last block's text asks for, so these weights are kept, but no parameters. A new
    network starts with random frequencies of positions instead of none, which would leave it without any.
    What embeds the time stays in float32.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = ["timestep_embedder", "pos_frequencies"]

    @wraps(MochiTransformer3DModel.__init__)  # type: ignore[misc]  # diffusers reads its signature
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("add_q_proj", "norm_added_q"):
            part: nn.Module = self.transformer_blocks[-1].attn1.get_submodule(name)
            weight = part.get_parameter("weight").detach()
            del part.weight
            part.register_buffer("weight", weight)
        self.rope = FP32RoPE()
        with torch.no_grad():  # a frame is 1 apart from the next, a picture 192 wide
            self.pos_frequencies[0].normal_(std=0.3)
            self.pos_frequencies[1:].normal_(std=0.03)


class Mochi(VideoBackbone):
    """A Mochi 1 denoiser on the canvas; all positions share one time.

    Prompt and latents attend to one another in one sequence; text tokens after the prompt's end, which are
    zeros, are left out of it. Positions are frames, and rows and columns scaled to one area, so a picture is
    equally large to the network at every resolution.
    """

    Denoiser = AdaptedMochi
    input_projection = "patch_embed.proj"
    blocks = ("transformer_blocks",)
    fp32_parts = ("norm1", "norm1_context", "norm_out", "rope")  # norms turn the time into scales and gates

    def released_codec(self, pretrained: str) -> LatentCodec:
        """Mochi's video autoencoder."""
        return MochiVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """T5 v1.1-XXL."""
        return MochiPrompts(pretrained)

    def released_path(self) -> NoisePath:
        """Noise levels within 0.01 of uniform, as Mochi is commonly fine-tuned."""
        return MochiFlow(sampling=TimeSampling(std=1.7))

    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels and text width."""
        channels = self.codec.channels
        return {"in_channels": channels, "out_channels": channels, "text_embed_dim": self.prompts.width}

    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """Equal channels."""
        codec, taken = self.codec, config["in_channels"]
        made = config["out_channels"] or taken
        if (taken, made) != (codec.channels, codec.channels):
            raise InvalidValue(
                f"Mochi: the transformer takes {taken} channels and makes {made}, the video autoencoder "
                f"makes {codec.channels}; this backbone needs {codec.channels} in and out: take both from "
                "one release"
            )
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        return LatentSpec(codec.channels, *strides, patch=config["patch_size"])

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer; its positions count on over the canvas."""
        prediction: Tensor = self.denoiser(
            hidden_states=self.network_input(noisy, canvas, context),
            encoder_hidden_states=context.tokens.to(noisy),
            timestep=self.network_time(u, canvas),
            encoder_attention_mask=context.tokens.ne(0).any(dim=2),
            return_dict=False,
        )[0]
        return prediction
