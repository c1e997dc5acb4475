"""Cosmos-Predict2 (after arXiv 2501.03575) through diffusers: transformer, Wan's codec, T5; or a tiny twin.

Reading order: the noise path, the network, the backbone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import FlowMatching, NoisePath, TimeSampling
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.codecs.base import LatentCodec
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.conditions.t5 import T5Prompts
from backbones.wan import WanVAE


@dataclass(frozen=True)
class CosmosFlow(FlowMatching):
    """Cosmos-Predict2's preconditioned noise scales, which are flow matching at u = s / (1 + s).

    What the network sees of x = x0 + s eps is z = x / (1 + s) = (1 - u) x0 + u eps, and the clean latents
    x / (1 + s) - u F make its raw output F the velocity eps - x0. The logarithm of s is the logit of u, so
    training's log-normal scales are logit-normal u. Sampling walks Karras's grid of scales. Its ends are pure
    noise, which the released model has been trained on, and clean; the released pipeline begins at sigma_max
    and ends at sigma_min, with a last step that changes nothing.

    Attributes:
        sigma_min: small end of the grid.
        sigma_max: large end.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    RHO = 7  # bend of the grid
    CLEAN = 0.0001  # noise scale of given frames

    def model_time(self, u: Float[Tensor, "*n"]) -> Tensor:
        """The noise level; a small noise scale for what is clean."""
        return u.clamp(min=self.CLEAN / (1 + self.CLEAN))

    def grid(self, steps: int) -> Float[Tensor, "n"]:
        """Karras's noise scales, their ends taken to 1 and 0."""
        low, high = self.sigma_min ** (1 / self.RHO), self.sigma_max ** (1 / self.RHO)
        sigma = (low + super().grid(steps) * (high - low)) ** self.RHO
        u = sigma / (1 + sigma)
        u[0], u[-1] = 1, 0
        return u


class AdaptedCosmos(CosmosTransformer3DModel):
    """diffusers' Cosmos transformer with a forward that leaves its input as it is.

    diffusers' own appends the padding mask after whatever it is given; the condition must come last. What
    embeds the time stays in float32.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_embed"]

    def forward(
        self,
        latents: Float[Tensor, "b e f h w"],
        time: Float[Tensor, "b *n"],
        text: Float[Tensor, "b l d"],
        fps: int,
    ) -> Float[Tensor, "b c f h w"]:
        """The network's prediction.

        Args:
            latents: input channels of the widened projection.
            time: noise level, per row or per frame.
            text: prompt embeddings.
            fps: frames per second.
        """
        rotary = self.rope(latents, fps)
        tokens = self.patch_embed(latents)
        f, h, w = tokens.shape[1:4]
        tokens = tokens.flatten(1, 3)
        modulation, embedded = (
            part.unflatten(0, time.shape) for part in self.time_embed(time, time.flatten())
        )
        if time.ndim == 2:
            modulation, embedded = (part.repeat_interleave(h * w, dim=1) for part in (modulation, embedded))
        for block in self.transformer_blocks:
            arguments = (tokens, text, embedded, modulation, rotary)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens = block(*arguments)
        tokens = self.proj_out(self.norm_out(tokens, embedded, modulation))
        _, p, q = self.config.patch_size
        return rearrange(tokens, "b (f h w) (p q c) -> b c f (h p) (w q)", f=f, h=h, w=w, p=p, q=q)


class Cosmos(VideoBackbone):
    """A Cosmos-Predict2 Video2World denoiser on the canvas, 2B or 14B.

    Beside the noisy latents it sees which positions are given, and which are padding: none is. Given frames
    hold clean latents, with a diffusion time of their own. The released pipeline's guidance scale g is g + 1
    here.

    Args:
        pretrained: local folder or hub id of a released checkpoint.
        fps: frames per second, a condition of the network; it was released at 16 and at 10.
        options: the other arguments of `backbones.base.VideoBackbone`.
    """

    Denoiser = AdaptedCosmos
    input_projection = "patch_embed.proj"
    blocks = ("transformer_blocks",)
    times = ("per_frame", "shared")
    fp32_parts = ("rope",)

    def __init__(self, pretrained: str | None = None, *, fps: int = 16, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.fps = fps

    def released_codec(self, pretrained: str) -> LatentCodec:
        """Wan 2.1's video autoencoder."""
        return WanVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """T5-11B; tokens after the prompt's end are zeros."""
        return T5Prompts(pretrained, encoder="T5EncoderModel", length=512, padding="zeros")

    def released_path(self) -> NoisePath:
        """Log-normal noise scales around 4, and one sample in twenty at pure noise, as it was trained."""
        return CosmosFlow(sampling=TimeSampling(std=1.2, shift=4.0, pure_noise=0.05))

    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels and the given mask, text width."""
        channels = self.codec.channels
        return {
            "in_channels": channels + 1,
            "out_channels": channels,
            "text_embed_dim": self.prompts.width,
        }

    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """The codec's channels and one mask; none of what Cosmos 1 and Predict2.5 have besides."""
        codec, taken, made = self.codec, config["in_channels"], config["out_channels"]
        if (taken, made) != (codec.channels + 1, codec.channels):
            raise InvalidValue(
                f"Cosmos: the transformer takes {taken} channels and makes {made}, the video autoencoder "
                f"makes {codec.channels}; this backbone needs {codec.channels + 1} (Video2World) in and "
                f"{codec.channels} out: take both from one release"
            )
        form = {
            "concat_padding_mask": True,
            "extra_pos_embed_type": None,
            "use_crossattn_projection": False,
            "img_context_dim_in": None,
        }
        other = {name: config[name] for name, value in form.items() if config.get(name, value) != value}
        steps, patch, _ = config["patch_size"]
        if other or steps != 1:
            raise InvalidValue(
                f"Cosmos: this backbone is for Predict2 ({form}, tokens of one latent frame), this "
                f"transformer has {other} and tokens of {steps}; take a Cosmos-Predict2 Video2World release"
            )
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        return LatentSpec(codec.channels, *strides, patch=patch)

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer; its positions count on over the canvas."""
        given = canvas.given.to(noisy)
        masks = torch.cat([given, torch.zeros_like(given)], dim=1)
        seen = self.network_input(noisy, canvas, context, masks)
        time = self.network_time(u, canvas)
        prediction: Tensor = self.denoiser(seen, time, context.tokens.to(noisy), self.fps)
        return prediction
