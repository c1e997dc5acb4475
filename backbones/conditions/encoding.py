"""The frozen encoders around a denoiser, shared by all backbones: codec, prompt encoder and image encoder."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ai_wam.types import LatentSpec
from ai_wam.utils.autocast import full_precision
from backbones.codecs.base import LatentCodec
from backbones.conditions.image_encoders import ImageEncoder
from backbones.conditions.prompts import Context, PromptEncoder


class FrozenEncoders(nn.Module, ABC):
    """The frozen encoders around a denoiser.

    Attributes:
        spec: of the latents.
        codec: video autoencoder.
        prompts: prompt encoder.
        images: image encoder; None for networks without a picture condition.
    """

    spec: LatentSpec
    codec: LatentCodec
    prompts: PromptEncoder
    images: ImageEncoder | None

    def encode(self, video: Float[Tensor, "b v 3 t h w"]) -> Float[Tensor, "b v c tl lh lw"]:
        """Latents of every view's clip, each encoded on its own."""
        clips = rearrange(video, "b v c t h w -> (b v) c t h w")
        with full_precision(video.device):  # one codec for training and testing
            latents: Tensor = self.codec.encode(clips.float()).float()
        return rearrange(latents, "(b v) c t h w -> b v c t h w", b=video.shape[0])

    def decode(
        self, latents: Float[Tensor, "b v c tl lh lw"], frames: int | None = None
    ) -> Float[Tensor, "b v 3 t h w"]:
        """Video in [-1, 1] of every view's latents.

        Args:
            latents: of whole clips.
            frames: how many frames from the first on are wanted; all, if left out. A codec that does not look
                ahead decodes only the frames needed, with the same result.
        """
        if frames is not None and self.codec.causal != "encoder":
            blocks = -(-(frames - 1) // self.spec.frame_multiple)  # ceiling
            blocks = max(blocks, int(self.codec.causal == "blocks"))  # a first frame alone is no block
            latents = latents[:, :, :, : self.spec.latent_frames(blocks * self.spec.frame_multiple + 1)]
        parts = rearrange(latents, "b v c t h w -> (b v) c t h w")
        with full_precision(latents.device):
            video: Tensor = self.codec.decode(parts.float()).float()
        return rearrange(video[:, :, :frames], "(b v) c t h w -> b v c t h w", b=latents.shape[0])

    def encode_images(self, now: Float[Tensor, "b v 3 1 h w"]) -> Float[Tensor, "b v k d"] | None:
        """Tokens of observed pictures, for networks conditioned on them; else None."""
        if self.images is None:
            return None
        with full_precision(now.device):
            tokens = self.images.encode(rearrange(now.float(), "b v c 1 h w -> (b v) c h w"))
        return rearrange(tokens, "(b v) k d -> b v k d", b=len(now))

    def encode_context(
        self,
        prompts: Sequence[str],
        now: Float[Tensor, "b v 3 1 h w"],
        view_mask: Bool[Tensor, "b v"],
        images: Float[Tensor, "b v k d"] | None = None,
    ) -> Context:
        """The context of prompts and observed pictures; tokens of missing views are zeros.

        Args:
            prompts: one per row.
            now: the pictures; unused where `images` is given.
            view_mask: False where a view is missing.
            images: `encode_images` of the pictures, where it was computed before.
        """
        context = self.prompts.encode(prompts, now.device)
        tokens = self.encode_images(now) if images is None else images
        if tokens is None:
            return context
        return replace(context, images=(tokens * view_mask[:, :, None, None]).flatten(1, 2))
