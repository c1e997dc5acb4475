"""Image encoders: tokens of a picture on which image-to-video models are conditioned besides its latents."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from backbones.weights.checkpoint_parts import require, together
from backbones.weights.loading import load_part


class ImageEncoder(nn.Module, ABC):
    """A frozen map from pictures to tokens.

    Attributes:
        width: size d of a token.
    """

    width: int

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k d"]:
        """Tokens of pictures in [-1, 1]."""

    def drop(self) -> None:
        """Free weights that can be loaded again."""
        return


class Thumbnails(ImageEncoder):
    """The picture itself, shrunk, as one token: for models that learn from scratch; nothing to download.

    Args:
        size: rows and columns of the shrunken picture.
    """

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size, self.width = size, 3 * size * size

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 d"]:
        """Means over equal cells."""
        return functional.adaptive_avg_pool2d(images, self.size).flatten(1)[:, None]


class CLIPImages(ImageEncoder):
    """The frozen CLIP image encoder of a released model, loaded at the first picture.

    Pictures are resized to the encoder's square, bicubic with antialiasing, and normalised by its statistics.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        features: "projected" is one token per picture (Stable Video Diffusion), "penultimate" every patch of
            the last layer but one (Wan image-to-video).
        processor: subfolder of the preprocessor's configuration.
        dtype: the weights' precision.
        device: where the encoder runs: beside the "model", or on the "cpu".
    """

    def __init__(
        self,
        pretrained: str,
        features: Literal["projected", "penultimate"],
        processor: str,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        device: Literal["model", "cpu"] = "model",
    ) -> None:
        super().__init__()
        from transformers import AutoConfig

        config, *_ = together(
            lambda: load_part(AutoConfig, pretrained, "image_encoder"),
            lambda: require(pretrained, "image_encoder", weights=True),
            lambda: require(pretrained, processor, weights=False),
        )
        self.device = device
        self.pretrained, self.features, self.processor = pretrained, features, processor
        self.dtype = getattr(torch, dtype)
        self.size = config.image_size
        self.width = config.projection_dim if features == "projected" else config.hidden_size
        self._loaded: tuple[Any, Tensor, Tensor] | None = None  # in a tuple, so that no checkpoint sees it

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k d"]:
        """Projected features or states of the patches, float32."""
        model, mean, std = self._load(torch.device("cpu") if self.device == "cpu" else images.device)
        size = (self.size, self.size)
        small = functional.interpolate(images.to(mean), size, mode="bicubic", antialias=True)
        pixels = (((small + 1) / 2 - mean) / std).to(self.dtype)
        if self.features == "projected":
            return model(pixels).image_embeds[:, None].to(images)
        return model(pixels, output_hidden_states=True).hidden_states[-2].to(images)

    def drop(self) -> None:
        """Free the encoder; the next picture loads it again."""
        self._loaded = None

    def _load(self, device: torch.device) -> tuple[Any, Tensor, Tensor]:
        if self._loaded is None:
            import transformers

            processor = load_part(transformers.CLIPImageProcessor, self.pretrained, self.processor)
            mean, std = (
                torch.tensor(values).view(1, 3, 1, 1)
                for values in (processor.image_mean, processor.image_std)
            )
            name = "CLIPVisionModelWithProjection" if self.features == "projected" else "CLIPVisionModel"
            model = load_part(getattr(transformers, name), self.pretrained, "image_encoder", self.dtype)
            self._loaded = (model.eval(), mean, std)
        model, mean, std = self._loaded
        self._loaded = (model.to(device), mean.to(device), std.to(device))
        return self._loaded
