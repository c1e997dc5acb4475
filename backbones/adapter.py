"""The input adapter: conditions enter a denoiser through a widened, zero-initialised input projection."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConditionedInput(nn.Module):
    """Wraps a denoiser's input convolution; at step 0 its output is bit-identical to the convolution's.

    The input holds [latents | condition | pooled prompt], the prompt repeated over all positions: what the
    wrapped model passes to its input projection anyway, so no block, hook or global state of it is touched.

    Args:
        base: the pretrained projection (Conv2d or Conv3d) of the latents.
        condition: channels of the canvas condition (rays, given, is-action, first observation).
        pooled: width of the pooled prompt, which scales and shifts the projected tokens; 0 leaves it out.
    """

    def __init__(self, base: nn.Conv2d | nn.Conv3d, condition: int, pooled: int = 0) -> None:
        super().__init__()
        self.base = base
        self.channels = (base.in_channels, condition, pooled)
        convolution: Any = type(base)
        self.extra = convolution(
            condition, base.out_channels, base.kernel_size, base.stride, base.padding, bias=False
        )
        nn.init.zeros_(self.extra.weight)
        self.modulate = nn.Linear(pooled, 2 * base.out_channels) if pooled else None
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b d *m"]:
        """Tokens of latents plus tokens of conditions, modulated by the prompt."""
        latents, condition, pooled = x.split(self.channels, dim=1)
        tokens: Tensor = self.base(latents) + self.extra(condition)
        if self.modulate is None:
            return tokens
        vector = pooled.flatten(2)[:, :, 0]
        scale, shift = self.modulate(vector).chunk(2, dim=1)
        shape = (*scale.shape, *(1 for _ in tokens.shape[2:]))
        return tokens * (1 + scale.view(shape)) + shift.view(shape)


def conditioned(
    latents: Float[Tensor, "b c *n"], condition: Float[Tensor, "b k *n"], pooled: Float[Tensor, "b d"] | None
) -> Float[Tensor, "b e *n"]:
    """The input of `ConditionedInput`."""
    parts = [latents, condition.to(latents)]
    if pooled is not None:
        shape = (*pooled.shape, *(1 for _ in latents.shape[2:]))
        parts.append(pooled.to(latents).view(shape).expand(-1, -1, *latents.shape[2:]))
    return torch.cat(parts, dim=1)
