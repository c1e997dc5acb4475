"""The interface of a latent codec: a frozen map between video and latents."""

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class LatentCodec(nn.Module, ABC):
    """A frozen map between video in [-1, 1] and latents of roughly unit scale.

    Attributes:
        channels: latent channels.
        spatial_stride: pixels per latent cell.
        temporal_stride: video frames per latent frame after the first.
        frame_multiple: clips of frame_multiple * k + 1 frames are valid.
        causal: on which later frames a latent frame depends: "exact", none beyond its own block, so the
            beginning of a clip can be encoded and decoded alone; "blocks", the same for clips of valid
            lengths only; "encoder", the encoder does not look ahead, but the decoder does.
        image_scale: factor from these latents to the picture condition of an image-to-video network.
    """

    channels: int
    spatial_stride: int
    temporal_stride: int
    frame_multiple: int
    causal: Literal["exact", "blocks", "encoder"]
    image_scale: float = 1.0

    @abstractmethod
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """Latents of whole clips; a clip of one frame is the first frame encoded alone."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video in [-1, 1], clamped."""
