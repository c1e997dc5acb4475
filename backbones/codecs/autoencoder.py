"""A released video autoencoder as a latent codec, written once for all families."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from backbones.codecs.base import LatentCodec
from backbones.weights.loading import load_codec


class VideoAutoencoder(LatentCodec):
    """A video autoencoder of diffusers, frozen: families set its class, its strides and its latents' scale.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        architecture: constructor arguments of an autoencoder with random weights instead.
        dtype: the weights' precision.
    """

    Autoencoder: ClassVar[Any]

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.vae = load_codec(self.Autoencoder, pretrained, architecture, getattr(torch, dtype))
        self.configure(self.vae.config)

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Set the attributes of `LatentCodec`.

        Args:
            config: the autoencoder's configuration; `self.vae` is there too.
        """

    @abstractmethod
    def normalize(self, raw: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n c tl lh lw"]:
        """Latents of roughly unit scale from the autoencoder's own."""

    @abstractmethod
    def denormalize(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n c tl lh lw"]:
        """The inverse of `normalize`."""

    def decode_raw(self, raw: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video of the autoencoder's own latents, in its precision."""
        video: Tensor = self.vae.decode(raw, return_dict=False)[0]
        return video

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """The posterior's mode, normalized."""
        return self.normalize(self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode().float())

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video, clamped to [-1, 1]."""
        return self.decode_raw(self.denormalize(latents).to(self.vae.dtype)).float().clamp(-1, 1)


class ScaledAutoencoder(VideoAutoencoder):
    """A video autoencoder whose latents are multiplied by one number.

    Attributes:
        scale: that number; `configure` sets it.
    """

    scale: float

    def normalize(self, raw: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n c tl lh lw"]:
        """Multiplied by the scale."""
        return raw * self.scale

    def denormalize(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n c tl lh lw"]:
        """Divided by the scale."""
        return latents / self.scale


class NormalizedAutoencoder(VideoAutoencoder):
    """A video autoencoder whose latents are normalized channel by channel."""

    mean: Float[Tensor, "1 c 1 1 1"]
    std: Float[Tensor, "1 c 1 1 1"]

    def set_statistics(self, mean: Any, std: Any, scale: float = 1.0) -> None:
        """Set mean and standard deviation of `normalize`; called by `configure`.

        Args:
            mean: of every channel.
            std: of every channel.
            scale: by which normalized latents are multiplied.
        """
        mean, std = (torch.as_tensor(part, dtype=torch.float32).view(1, -1, 1, 1, 1) for part in (mean, std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std / scale, persistent=False)

    def normalize(self, raw: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n c tl lh lw"]:
        """Subtract the mean, divide by the standard deviation."""
        return (raw - self.mean) / self.std

    def denormalize(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n c tl lh lw"]:
        """Multiply by the standard deviation, add the mean."""
        return latents * self.std + self.mean
