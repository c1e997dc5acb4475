"""The interface of a video backbone, and what is written once for all of them: loss and sampling."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ai_wam.canvas import Canvas
from ai_wam.noise import NoisePath
from ai_wam.types import LatentSpec
from backbones.codec import LatentCodec
from backbones.prompts import Context, PromptEncoder

Prediction = Literal["native", "clean"]


class VideoBackbone(nn.Module, ABC):
    """A latent video diffusion model that denoises a canvas.

    A subclass builds three parts and writes `predict`; everything else is generic.

    Args:
        denoiser: the trainable network.
        codec: the frozen video autoencoder.
        prompts: the frozen prompt encoder.
        path: the noise path the network was trained on.
        spec: its latents.
        prediction: "native" reads the network's output as the path's own target; "clean" as the clean
            latents, which small models trained from scratch learn faster.
        frozen_in_checkpoint: whether checkpoints carry codec and prompt encoder. Released ones are gigabytes
            that never change: they are left out and loaded again from where they came.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        codec: LatentCodec,
        prompts: PromptEncoder,
        path: NoisePath,
        spec: LatentSpec,
        prediction: Prediction = "native",
        frozen_in_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.denoiser, self.codec, self.prompts = denoiser, codec, prompts
        self.path, self.spec, self.prediction = path, spec, prediction
        for part in (codec, prompts):
            part.requires_grad_(False).eval()
        if not frozen_in_checkpoint:
            self.register_state_dict_post_hook(_drop_frozen)
            self.register_load_state_dict_post_hook(_forgive_frozen)

    @abstractmethod
    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """The network's raw output for a canvas at noise levels u; given positions hold clean latents."""

    def train(self, mode: bool = True) -> "VideoBackbone":
        """Switch the denoiser's mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        self.codec.eval()
        self.prompts.eval()
        return self

    def encode(self, video: Float[Tensor, "b v 3 t h w"]) -> Float[Tensor, "b v c tl lh lw"]:
        """Latents of every view's clip, each encoded on its own."""
        clips = rearrange(video, "b v c t h w -> (b v) c t h w")
        with torch.autocast(video.device.type, enabled=False):  # one codec for training and testing
            latents: Tensor = self.codec.encode(clips.float()).float()
        return rearrange(latents, "(b v) c t h w -> b v c t h w", b=video.shape[0])

    def decode(self, latents: Float[Tensor, "b v c tl lh lw"]) -> Float[Tensor, "b v 3 t h w"]:
        """Video in [-1, 1] of every view's latents."""
        parts = rearrange(latents, "b v c t h w -> (b v) c t h w")
        with torch.autocast(latents.device.type, enabled=False):
            video: Tensor = self.codec.decode(parts.float()).float()
        return rearrange(video, "(b v) c t h w -> b v c t h w", b=latents.shape[0])

    def encode_prompts(self, prompts: Sequence[str], device: torch.device) -> Context:
        """The context of a batch of prompts."""
        return self.prompts.encode(prompts, device)

    def denoise(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> tuple[Float[Tensor, "b c f h w"], Float[Tensor, "b c f h w"]]:
        """The clean latents and the noise that the network sees in a noisy canvas, u > 0."""
        prediction = self.predict(noisy, u, canvas, context).float()
        level = u.view(-1, 1, 1, 1, 1)
        if self.prediction == "native":
            return self.path.invert(prediction, noisy, level)
        return prediction, self.path.noise_from_clean(prediction, noisy, level)

    def loss(
        self, canvas: Canvas, context: Context, u: Float[Tensor, "b"], noise: Float[Tensor, "b c f h w"]
    ) -> Float[Tensor, "b"]:
        """Mean squared error per row over the positions that count; 0 for a row without any."""
        level = u.view(-1, 1, 1, 1, 1)
        noisy = torch.where(canvas.given, canvas.clean, self.path.add_noise(canvas.clean, noise, level))
        prediction = self.predict(noisy, u, canvas, context)
        target = canvas.clean if self.prediction == "clean" else self.path.target(canvas.clean, noise, level)
        error = ((prediction.float() - target.float()) ** 2 * canvas.counted).flatten(1).sum(1)
        return error / (canvas.counted.flatten(1).sum(1) * canvas.clean.shape[1]).clamp(min=1)

    @torch.no_grad()
    def sample(
        self,
        canvas: Canvas,
        context: Context,
        noise: Float[Tensor, "b c f h w"],
        steps: int,
        guidance: float = 1.0,
        null_context: Context | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Generate what the canvas does not give, from noise (u = 1) down to clean (u = 0) in Euler steps.

        Args:
            canvas: what is given; its given positions come back bit-identical.
            context: the prompts.
            noise: where the path starts; the same noise gives the same result.
            steps: network evaluations.
            guidance: scale of classifier-free guidance; 1 is off and costs nothing.
            null_context: the empty prompts, needed for guidance other than 1; evaluated in the same forward.
        """
        if guidance != 1 and null_context is None:
            raise ValueError(f"guidance {guidance} needs null_context (the empty prompts)")
        z = torch.where(canvas.given, canvas.clean, noise)
        for now, after in pairwise(self.path.grid(steps).to(noise.device)):
            u = now.expand(len(z))
            if guidance == 1 or null_context is None:
                clean, eps = self.denoise(z, u, canvas, context)
            else:
                both = self.denoise(_twice(z), _twice(u), _twice(canvas), _joined(context, null_context))
                (clean, null_clean), (eps, null_eps) = (part.chunk(2) for part in both)
                clean = null_clean + guidance * (clean - null_clean)
                eps = null_eps + guidance * (eps - null_eps)
            a, b = self.path.coefficients(after)
            z = torch.where(canvas.given, canvas.clean, a * clean + b * eps)
        return z


def _twice(value: Any) -> Any:
    """A tensor, or a canvas's tensors, stacked twice along the batch."""
    if isinstance(value, Tensor):
        return torch.cat([value, value])
    tensors = {name: _twice(part) for name, part in vars(value).items() if isinstance(part, Tensor)}
    return replace(value, **tensors)


def _joined(first: Context, second: Context) -> Context:
    return Context(torch.cat([first.tokens, second.tokens]), torch.cat([first.pooled, second.pooled]))


_FROZEN = ("codec.", "prompts.")


def _drop_frozen(_: nn.Module, state: dict[str, Tensor], prefix: str, __: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(tuple(prefix + part for part in _FROZEN))]:
        del state[name]


def _forgive_frozen(module: nn.Module, incompatible: Any) -> None:
    own = {
        name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name.startswith(_FROZEN)
    }
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if not any(key.endswith(name) for name in own)
    ]
