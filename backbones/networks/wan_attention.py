"""Wan's self-attention with a mask, cached keys and values, and an offset of its input (cameras)."""

from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Bool, Float
from torch import Tensor


class AttentionInputs(NamedTuple):
    """Arguments of self-attention of one block; passed where diffusers' blocks pass rotary positions.

    Attributes:
        cos: rotary positions of the tokens,
        sin: the same.
        mask: which keys a query may look at; None for all.
        past: keys and values of tokens that are not computed again.
        record: an empty list that receives keys and values, if they are to be cached; one per block, since
            blocks are recompiled for every length of a list argument.
        offset: what is added to the tokens.
    """

    cos: Float[Tensor, "1 n 1 d"]
    sin: Float[Tensor, "1 n 1 d"]
    mask: Bool[Tensor, "b 1 q k"] | None = None
    past: tuple[Tensor, Tensor] | None = None
    record: list[tuple[Tensor, Tensor]] | None = None
    offset: Float[Tensor, "b n width"] | None = None


class WanAttention:
    """Wan's self-attention, with a mask, cached keys and values and an offset of its input."""

    _attention_backend = None  # what diffusers' set_attention_backend sets
    _parallel_config = None

    def __call__(
        self, attn: Any, tokens: Float[Tensor, "b q d"], context: None, mask: None, guide: AttentionInputs
    ) -> Float[Tensor, "b q d"]:
        """Attend; diffusers' blocks fill the arguments."""
        heads = (attn.heads, -1)
        tokens = tokens if guide.offset is None else tokens + guide.offset.type_as(tokens)
        query = _rotated(attn.norm_q(attn.to_q(tokens)).unflatten(2, heads), guide)
        key = _rotated(attn.norm_k(attn.to_k(tokens)).unflatten(2, heads), guide)
        value = attn.to_v(tokens).unflatten(2, heads)
        if guide.record is not None:
            guide.record.append((key, value))
        if guide.past is not None:
            key, value = torch.cat([guide.past[0], key], dim=1), torch.cat([guide.past[1], value], dim=1)
        found = dispatch_attention_fn(
            query, key, value, attn_mask=guide.mask, backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )  # fmt: skip
        return attn.to_out[0](found.flatten(2, 3).type_as(query))


def _rotated(x: Float[Tensor, "b q heads d"], guide: AttentionInputs) -> Float[Tensor, "b q heads d"]:
    """Neighbouring channels turned by the position's angles."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = guide.cos[..., 0::2], guide.sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(3).type_as(x)
