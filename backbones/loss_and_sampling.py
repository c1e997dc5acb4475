"""Training loss, denoising and sampling of a canvas, shared by all backbones."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.canvas import Canvas, Kind
from ai_wam.diffusion.noise_paths import NoisePath
from ai_wam.diffusion.solvers import Solver, integrate
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from ai_wam.utils.autocast import half_precision
from backbones.conditions.encoding import FrozenEncoders
from backbones.conditions.prompts import Context

Prediction = Literal["native", "clean", "change"]


class CanvasDiffusion(FrozenEncoders, ABC):
    """A network that denoises a canvas along one noise path.

    Attributes:
        path: the noise path.
        prediction: "native" reads the network's output as the path's own target, "clean" as clean latents,
            "change" as the difference of clean latents from `Canvas.held`.
        spec: of the latents, and how the diffusion time enters.
        weights_dtype: precision of its computation outside of autocast.
    """

    path: NoisePath
    prediction: Prediction
    spec: LatentSpec
    weights_dtype: torch.dtype

    @abstractmethod
    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """The network's raw output for a canvas at noise levels u; given positions hold clean latents."""

    def hold(self, canvas: Canvas) -> Canvas:
        """The canvas with `Canvas.held`, latents of a still scene, for networks that predict the change."""
        if self.prediction != "change":
            return canvas
        parts, stride = [], self.spec.spatial_stride
        for segment, part in zip(canvas.segments, canvas.unpack(canvas.clean), strict=True):
            frames, (rows, columns) = (segment.length - 1) * self.spec.temporal_stride + 1, part.shape[-2:]
            if segment.kind is Kind.VIDEO:
                now = self.decode(part[:, None, :, :1])
            else:  # black, for all rows alike
                now = part.new_full((1, 1, 3, 1, rows * stride, columns * stride), -1)
            held = self.encode(now.expand(-1, -1, -1, frames, -1, -1))[:, 0]
            parts.append(held.expand_as(part))
        return replace(canvas, held=canvas.packed(parts))

    def prepare(self, canvas: Canvas, context: Context) -> Context:
        """Compute once what does not change while a canvas is sampled, and keep it in `Context.memory`."""
        return context

    def guidance_at(self, u: Float[Tensor, "b"], guidance: float) -> float | Float[Tensor, "b 1 1 1 1"]:
        """The scale of classifier-free guidance at noise levels; one for all, unless a model has several."""
        return guidance

    def network_time(self, u: Float[Tensor, "b"], canvas: Canvas) -> Float[Tensor, "b *n"]:
        """The network's time argument: per row, frame or token, as the spec says."""
        time = self.path.model_time(u).float()
        if self.spec.time == "shared":
            return time
        p = self.spec.patch
        generated = ~canvas.given[:, 0, :: self.spec.patch_time, ::p, ::p]
        generated = generated.flatten(2).any(2) if self.spec.time == "per_frame" else generated.flatten(1)
        clean = self.path.model_time(torch.zeros_like(u)).float()
        return torch.where(generated, time[:, None], clean[:, None])

    def denoise(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> tuple[Float[Tensor, "b c f h w"], Float[Tensor, "b c f h w"]]:
        """Estimates of the clean latents and of the noise in a noisy canvas, u > 0."""
        prediction, level = self._predicted(noisy, u, canvas, context), u.view(-1, 1, 1, 1, 1)
        if self.prediction == "native":
            return self.path.invert(prediction, noisy, level)
        return prediction, self.path.noise_from_clean(prediction, noisy, level)

    def _predicted(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """The network's estimate: of the path's own target, or of the clean latents."""
        with half_precision(self.weights_dtype, noisy.device):
            prediction = self.predict(noisy, u, canvas, context).float()
        if self.prediction != "change":
            return prediction
        if canvas.held is None:
            raise InvalidValue("prediction: change needs `Canvas.held`; call `VideoBackbone.hold` first")
        return prediction + canvas.held

    def loss(
        self, canvas: Canvas, context: Context, u: Float[Tensor, "b"], noise: Float[Tensor, "b c f h w"]
    ) -> Float[Tensor, "b"]:
        """Mean squared error per row over the positions that count; 0 for a row without any."""
        return self.loss_and_estimate(canvas, context, u, noise)[0]

    def loss_and_estimate(
        self,
        canvas: Canvas,
        context: Context,
        u: Float[Tensor, "b"],
        noise: Float[Tensor, "b c f h w"],
        weight: Float[Tensor, "b 1 f h w"] | None = None,
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b c f h w"], Float[Tensor, "b 1 f h w"]]:
        """The loss per row, the estimate of the clean latents, and the error by position.

        The error is a mean over channels, 0 where nothing counts; the loss is its mean over what counts,
        weighted by position where a weight is given.
        """
        level = u.view(-1, 1, 1, 1, 1)
        noisy = torch.where(canvas.given, canvas.clean, self.path.add_noise(canvas.clean, noise, level))
        seen = self._predicted(noisy, u, canvas, context)
        native = self.prediction == "native"
        target = self.path.target(canvas.clean, noise, level) if native else canvas.clean
        error = (seen - target.float()).square().mean(1, keepdim=True) * canvas.counted
        error = error * self.path.weight(u).view(-1, 1, 1, 1, 1)
        counted = canvas.counted if weight is None else canvas.counted * weight
        weighted = error if weight is None else error * weight
        loss = weighted.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
        clean = self.path.invert(seen, noisy, level)[0] if native else seen
        return loss, torch.where(canvas.given, canvas.clean, clean), error

    @torch.no_grad()
    def sample(
        self,
        canvas: Canvas,
        context: Context,
        noise: Float[Tensor, "b c f h w"],
        steps: int,
        guidance: float = 1.0,
        null_context: Context | None = None,
        solver: Solver = "euler",
    ) -> Float[Tensor, "b c f h w"]:
        """Generate what the canvas does not give, from noise (u = 1) down to clean (u = 0).

        Args:
            canvas: what is given; its given positions come back bit-identical.
            context: prompts and pictures.
            noise: where the path starts; the same noise gives the same result.
            steps: steps of the path's grid.
            guidance: scale of classifier-free guidance; 1 is off and costs nothing.
            null_context: the empty prompts, needed for guidance other than 1; evaluated in the same forward.
            solver: see `ai_wam.diffusion.solvers`.
        """
        if guidance != 1 and null_context is None:
            raise InvalidValue(f"guidance {guidance} needs null_context (the empty prompts)")

        guided = guidance != 1 and null_context is not None
        doubled = _twice(canvas) if guided else canvas
        both_contexts = context.joined(null_context) if guided and null_context is not None else context
        with half_precision(self.weights_dtype, noise.device):
            both_contexts = self.prepare(doubled, both_contexts)

        def denoise(z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            if not guided:
                return self.denoise(z, u, doubled, both_contexts)
            both = self.denoise(_twice(z), _twice(u), doubled, both_contexts)
            (clean, null_clean), (eps, null_eps) = (part.chunk(2) for part in both)
            scale = self.guidance_at(u, guidance)
            return null_clean + scale * (clean - null_clean), null_eps + scale * (eps - null_eps)

        def hold(z: Tensor) -> Tensor:
            return torch.where(canvas.given, canvas.clean, z)

        return integrate(self.path, denoise, hold, noise, steps, solver)


def _twice(value: Any) -> Any:
    """A tensor, or a canvas's tensors, stacked twice along the batch."""
    if isinstance(value, Tensor):
        return torch.cat([value, value])
    tensors = {name: _twice(part) for name, part in vars(value).items() if isinstance(part, Tensor)}
    return replace(value, **tensors)
