"""A transformer that denoises a chunk of actions, looking at tokens of an observation."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers

_STATE = 3 + 9 + 1  # position, rotation, openness


class ChunkDenoiser(nn.Module):
    """Tokens of noisy actions, attending to one another and to the observation; it predicts clean actions.

    Args:
        width: of a token.
        layers: of the transformer.
        heads: of every attention.

    Raises:
        ValueError: numbers below 1, or a width that heads do not divide.
    """

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        check_numbers("ChunkDenoiser", at_least=1, width=width, layers=layers, heads=heads)
        if width % (2 * heads):
            raise InvalidValue(f"ChunkDenoiser: width {width} must be a multiple of twice the {heads} heads")
        self.width = width
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.state = nn.Linear(_STATE, width)

    def fit_to(self, steps: int, channels: int, prompt: int) -> None:
        """Take chunks of so many steps and channels, and prompts of this width; called once by the task."""
        self.own = nn.Parameter(0.02 * torch.randn(steps, self.width))
        self.inward, self.outward = nn.Linear(channels, self.width), nn.Linear(self.width, channels)
        self.words = nn.Linear(prompt, self.width)

    def forward(
        self,
        noisy: Float[Tensor, "b a c"],
        time: Float[Tensor, "b"],
        seen: Float[Tensor, "b n e"],
        mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b a c"]:
        """Clean actions.

        Args:
            noisy: actions.
            time: of the noise path, 0 to 1000.
            seen: tokens of `observed`.
            mask: False for tokens that are not there.
        """
        when = self.time(_waves(time, self.width))[:, None]
        tokens = self.inward(noisy) + self.own + when
        out: Tensor = self.outward(self.transformer(tokens, seen, memory_key_padding_mask=~mask))
        return out

    def observed(
        self,
        views: Float[Tensor, "b v k e"],
        view_mask: Bool[Tensor, "b v"],
        words: Float[Tensor, "b l d"],
        state: Float[Tensor, "b 13"],
    ) -> tuple[Float[Tensor, "b n e"], Bool[Tensor, "b n"]]:
        """One sequence of the tokens of views, instruction and present pose, and which of them are there."""
        b, _, keypoints, _ = views.shape
        seen = torch.cat([views.flatten(1, 2), self.words(words), self.state(state)[:, None]], dim=1)
        there = view_mask[:, :, None].expand(-1, -1, keypoints).flatten(1)
        said = words.ne(0).any(-1)
        return seen, torch.cat([there, said, said.new_ones(b, 1)], dim=1)


def _waves(time: Float[Tensor, "b"], width: int) -> Float[Tensor, "b d"]:
    """Sines and cosines of a time between 0 and 1000."""
    rates = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = time.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
