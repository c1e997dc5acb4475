"""The input adapter: conditions enter a denoiser through a widened, zero-initialised input projection."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ADDED = ("extra", "modulate", "block_conditions")  # modules of ours that take conditions


class ConditionedInput(nn.Module):
    """Wraps a denoiser's input projection; at step 0 its output is bit-identical to the projection's.

    Conditions are added in full precision: in bfloat16 a ray is more than a pixel off at 512 pixels.

    The input holds [the model's own channels | condition | pooled prompt], the prompt repeated over all
    positions: what the wrapped model passes to its input projection anyway, so no block, hook or global state
    of it is touched.

    Args:
        base: the pretrained projection: a convolution over positions, or a linear map of patches whose
            features are ordered channel by channel.
        condition: channels of the canvas condition (rays, given, is-action, known observation).
        pooled: width of the pooled prompt, which scales and shifts the projected tokens; 0 leaves it out.
        patch: positions per patch of a linear map.
    """

    def __init__(
        self, base: nn.Conv2d | nn.Conv3d | nn.Linear, condition: int, pooled: int = 0, patch: int = 1
    ) -> None:
        super().__init__()
        self.base = base
        if isinstance(base, nn.Linear):
            self.width, self.axis = base.out_features, -1
            self.channels = [base.in_features, condition * patch, pooled * patch]
            self.extra: nn.Module = nn.Linear(condition * patch, self.width, bias=False)
        else:
            self.width, self.axis = base.out_channels, 1
            self.channels = [base.in_channels, condition, pooled]
            convolution: Any = type(base)
            self.extra = convolution(
                condition, self.width, base.kernel_size, base.stride, base.padding, bias=False
            )
        self.modulate = nn.Linear(pooled, 2 * self.width) if pooled else None
        for module in (self.extra, self.modulate):
            for parameter in () if module is None else module.parameters():
                nn.init.zeros_(parameter)
        self.patch = patch

    def forward(self, x: Float[Tensor, "b *c"]) -> Float[Tensor, "b *d"]:
        """Tokens of latents plus tokens of conditions, modulated by the prompt."""
        own, condition, pooled = x.split(self.channels, dim=self.axis)
        plain: Tensor = self.base(own)
        tokens = plain + self.extra(condition)
        if self.modulate is None:
            return tokens.type_as(plain)
        if self.axis == 1:  # one prompt per row; every position holds the same
            vector = pooled.flatten(2)[:, :, 0]
            shape = (len(tokens), -1, *(1 for _ in tokens.shape[2:]))
            scale, shift = (part.view(shape) for part in self.modulate(vector).chunk(2, dim=1))
        else:
            scale, shift = self.modulate(pooled[..., :: self.patch]).chunk(2, dim=-1)
        return (tokens * (1 + scale) + shift).type_as(plain)


def adapt_input(network: nn.Module, projection: str, condition: int, pooled: int, patch: int) -> None:
    """Put the adapter around a network's input projection, in place.

    Args:
        network: a released denoiser.
        projection: dotted name of its input projection.
        condition: channels of the canvas condition.
        pooled: width of the pooled prompt; 0 leaves it out.
        patch: positions per patch of a linear projection.
    """
    parent, _, name = projection.rpartition(".")
    owner = network.get_submodule(parent)
    setattr(owner, name, ConditionedInput(getattr(owner, name), condition, pooled, patch))


def conditioned(
    own: Float[Tensor, "b c *n"], condition: Float[Tensor, "b k *n"], pooled: Float[Tensor, "b d"] | None
) -> Float[Tensor, "b e *n"]:
    """The input of `ConditionedInput`."""
    parts = [own, condition.to(own)]
    if pooled is not None:
        shape = (*pooled.shape, *(1 for _ in own.shape[2:]))
        parts.append(pooled.to(own).view(shape).expand(-1, -1, *own.shape[2:]))
    return torch.cat(parts, dim=1)
