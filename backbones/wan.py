"""Wan (arXiv 2503.20314) through diffusers: WanTransformer3DModel, AutoencoderKLWan and UMT5, or a tiny twin.

Reading order: the video autoencoder, the network, the backbone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas
from ai_wam.errors import InvalidValue
from ai_wam.noise import FlowMatching, NoisePath, TimeSampling
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.block_inputs import CameraEncoders, ray_videos
from backbones.codec import LatentCodec
from backbones.images import CLIPImages, ImageEncoder
from backbones.loading import load_codec
from backbones.prompts import Context, PromptEncoder
from backbones.t5 import T5Prompts
from backbones.wan_attention import Guide, GuidedAttention


class WanVAE(LatentCodec):
    """Wan's causal video autoencoder (2.1: 16 channels, 8x; 2.2: 48 channels, 16x), normalised per channel.

    It is exactly causal: the first latent frame of a clip equals the first frame encoded alone.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        architecture: constructor arguments of an autoencoder with random weights instead.
        dtype: the weights' precision.
    """

    causal = "exact"

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.vae = load_codec(AutoencoderKLWan, pretrained, architecture, getattr(torch, dtype))
        config = self.vae.config
        self.channels = config.z_dim
        self.spatial_stride, self.temporal_stride = config.scale_factor_spatial, config.scale_factor_temporal
        self.frame_multiple = self.temporal_stride
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.latents_std).view(shape), persistent=False)

    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """The posterior's mode, normalised."""
        latents = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video, clamped to [-1, 1]."""
        video: Tensor = self.vae.decode(
            (latents * self.std + self.mean).to(self.vae.dtype), return_dict=False
        )[0]
        return video.float().clamp(-1, 1)


class GuidedWan(WanTransformer3DModel):
    """diffusers' Wan with a forward that may be told what is given, and compute some of the tokens only.

    Attributes:
        camera_encoders: maps of camera latents; None if cameras are told by their rays alone.
    """

    camera_encoders: CameraEncoders | None

    ROWS = 8  # of each of the two times

    def forward(
        self,
        latents: Float[Tensor, "b e f h w"],
        time: Float[Tensor, "b *two"],
        text: Float[Tensor, "b l d"],
        images: Float[Tensor, "b m k"] | None = None,
        clean: Bool[Tensor, "b n"] | None = None,
        mask: Bool[Tensor, "b 1 q k"] | None = None,
        chosen: Int[Tensor, "q"] | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
        record: list[tuple[Tensor, Tensor]] | None = None,
        offsets: Float[Tensor, "blocks b f width"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """The network's prediction.

        Args:
            latents: input channels of the widened projection.
            time: 1000 times the noise level, per row; with `clean`, of noisy tokens and of clean ones.
            text: prompt embeddings.
            images: image embeddings of image-to-video networks.
            clean: which tokens have the second time.
            mask: which keys a query may look at.
            chosen: tokens to compute; the prediction is zero elsewhere.
            past: keys and values of the other tokens, block by block.
            record: receives keys and values of the computed tokens, block by block.
            offsets: what is added to the input of self-attention, block by block, frame by frame.
        """
        cos, sin = self.rope(latents)
        tokens = self.patch_embedding(latents)
        grid = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2).contiguous()
        if chosen is not None:
            tokens, cos, sin = tokens[:, chosen], cos[:, chosen], sin[:, chosen]
            clean = None if clean is None else clean[:, chosen]
        embedded, modulation = self._timed(time, clean)
        text = self.condition_embedder.text_embedder(text)
        if images is not None:
            text = torch.cat([self.condition_embedder.image_embedder(images), text], dim=1)
        for index, block in enumerate(self.blocks):
            offset = None if offsets is None else offsets[index].repeat_interleave(grid[1] * grid[2], dim=1)
            offset = offset if offset is None or chosen is None else offset[:, chosen]
            told_back: list[tuple[Tensor, Tensor]] | None = None if record is None else []
            guide = Guide(cos, sin, mask, None if past is None else past[index], told_back, offset)
            arguments = (tokens, text, modulation, guide)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens = block(*arguments)
            if record is not None and told_back is not None:
                record += told_back
        table = self.scale_shift_table.to(embedded.device)
        shift, scale = (table + embedded.unsqueeze(-2)).chunk(2, dim=-2)
        if clean is not None:
            shift, scale = shift.squeeze(-2), scale.squeeze(-2)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        return self._unpatched(self.proj_out(tokens), grid, chosen)

    def _timed(
        self, time: Float[Tensor, "b *two"], clean: Bool[Tensor, "b n"] | None
    ) -> tuple[Float[Tensor, "b *n d"], Float[Tensor, "b *n 6 d"]]:
        """Embedded time and the blocks' modulation: of the two times of a row, then told to every token.

        Each is embedded several times over, or matrix products would take ways of their own for so few rows
        and be a last bit off those of all tokens.
        """
        embedder = self.condition_embedder
        if clean is not None:
            time = time.repeat_interleave(self.ROWS, dim=1)
        waves = embedder.timesteps_proj(time.flatten()).unflatten(0, time.shape)
        embedded = embedder.time_embedder(waves).to(embedder.time_proj.weight.dtype)
        modulation = embedder.time_proj(embedder.act_fn(embedded)).unflatten(-1, (6, -1))
        if clean is None:
            return embedded, modulation
        return (
            torch.where(clean[:, :, None], embedded[:, -1:], embedded[:, :1]),
            torch.where(clean[:, :, None, None], modulation[:, -1:], modulation[:, :1]),
        )

    def _unpatched(
        self, tokens: Float[Tensor, "b q d"], grid: torch.Size, chosen: Int[Tensor, "q"] | None
    ) -> Float[Tensor, "b c f h w"]:
        """Tokens as latents, zero where none was computed."""
        if chosen is not None:
            whole = tokens.new_zeros(len(tokens), grid.numel(), tokens.shape[2])
            whole[:, chosen] = tokens
            tokens = whole
        f, h, w = grid
        _, p, q = self.config.patch_size
        return rearrange(
            tokens, "b (f h w) (p q c) -> b c f (h p) (w q)", f=f, h=h, w=w, p=p, q=q
        ).contiguous()


class Wan(VideoBackbone):
    """A Wan denoiser on the canvas: text to video (2.1), image to video (2.1) or both (2.2 TI2V).

    An image-to-video network sees, beside the noisy latents, which frames are given (one channel per video
    frame of a latent frame) and the latents of a clip whose later frames are grey; given frames stand there
    as they are. Its image tokens are those of every view, one after the other.

    Args:
        pretrained: local folder or hub id of a released checkpoint.
        given_attention: "full" lets every token look at every other one, as released; "one_way" keeps given
            tokens from looking at generated ones, so that what they say does not change while sampling. A
            model must be trained the way it is used.
        cache_given: compute given tokens once per sample instead of in every step; the result is the same.
            Needs one-way attention and per-token time; rows with different views missing are not cached.
        camera_encoders: tell every block the cameras as the released Action Images checkpoint does.
        options: the other arguments of `backbones.base.VideoBackbone`.

    Raises:
        ValueError: a cache that would not be exact.
    """

    Denoiser = GuidedWan
    input_projection = "patch_embedding"
    blocks = ("blocks",)
    times = ("per_token", "shared")
    precise = ("time_proj",)

    TEXT_LENGTH = 512  # image-to-video attention splits image and text tokens at this number

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        given_attention: Literal["full", "one_way"] = "full",
        cache_given: bool = False,
        camera_encoders: bool = False,
        **options: Any,
    ) -> None:
        self.camera_encoders = camera_encoders  # what `extras` asks
        self.given_attention, self.cache_given = given_attention, cache_given  # what `trained_as` says
        super().__init__(pretrained, **options)
        for block in self.denoiser.blocks:
            block.attn1.set_processor(GuidedAttention())
        if cache_given and (given_attention, self.spec.time) != ("one_way", "per_token"):
            raise InvalidValue(
                f"cache_given needs given_attention: one_way and time: per_token, got {given_attention} and "
                f"{self.spec.time}: otherwise given tokens change from step to step; train the model so, or "
                "leave the cache off"
            )

    def released_codec(self, pretrained: str) -> LatentCodec:
        """Wan's video autoencoder."""
        return WanVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """UMT5-XXL; tokens after the prompt's end are zeros."""
        return T5Prompts(pretrained, encoder="UMT5EncoderModel", length=self.TEXT_LENGTH, padding="zeros")

    def released_images(self, pretrained: str, config: Mapping[str, Any]) -> ImageEncoder | None:
        """CLIP's patches, for networks that take them."""
        if config["image_dim"] is None:
            return None
        return CLIPImages(pretrained, features="penultimate", processor="image_processor")

    def released_path(self) -> NoisePath:
        """Flow matching with the shift of Wan 2.2 TI2V."""
        return FlowMatching(sampling=TimeSampling(shift=5.0), sampler_shift=5.0)

    def widths(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels, text width and image width."""
        channels = self.codec.channels
        taken = architecture.get("in_channels", channels)
        widths = {"in_channels": taken, "out_channels": channels, "text_dim": self.prompts.width}
        return widths if self.images is None else {**widths, "image_dim": self.images.width}

    def describe(self, config: Mapping[str, Any]) -> LatentSpec:
        """Equal channels, or those of an image-to-video network."""
        codec, taken = self.codec, config["in_channels"]
        shown = 2 * codec.channels + codec.temporal_stride
        if taken not in (codec.channels, shown) or config["out_channels"] != codec.channels:
            raise InvalidValue(
                f"Wan: the transformer takes {taken} channels and makes {config['out_channels']}, the video "
                f"autoencoder makes {codec.channels}; this backbone needs {codec.channels} (text to video) "
                f"or {shown} (image to video) in, {codec.channels} out: take both from one release"
            )
        if config["image_dim"] is not None and self.prompts.length > self.TEXT_LENGTH:
            raise InvalidValue(
                f"Wan: prompts of {self.prompts.length} tokens, limit {self.TEXT_LENGTH} for networks that "
                "take image tokens, which stand after them; set a smaller `length` of the prompts"
            )
        steps, patch, _ = config["patch_size"]
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        return LatentSpec(codec.channels, *strides, patch=patch, patch_time=steps)

    def shows_image(self, config: Mapping[str, Any]) -> bool:
        """Image-to-video networks take more channels than the codec makes."""
        return bool(config["in_channels"] != self.codec.channels)

    def encode_still(
        self, first: Float[Tensor, "b v 3 1 h w"], latents: Float[Tensor, "b v c 1 lh lw"], frames: int
    ) -> Float[Tensor, "b v c tl lh lw"] | None:
        """Latents of the first frame followed by grey, for image-to-video networks."""
        if not self.shows_image(self.denoiser.config):
            return None
        grey = torch.zeros_like(first).expand(-1, -1, -1, frames - 1, -1, -1)
        return self.encode(torch.cat([first, grey], dim=3))

    def extras(self, config: Mapping[str, Any]) -> dict[str, nn.Module | None]:
        """Cameras as the released Action Images checkpoint is told them."""
        width, blocks = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
        return {"camera_encoders": CameraEncoders(width, blocks) if self.camera_encoders else None}

    def trained_as(self) -> dict[str, Any]:
        """Who looks at whom, too."""
        return {**super().trained_as(), "given_attention": self.given_attention}

    def encode_cameras(
        self, cameras: Cameras, size: tuple[int, int], frames: int
    ) -> Float[Tensor, "b v e tl lh lw"] | None:
        """Latents of every view's ray directions and moments, for camera encoders."""
        if not self.camera_encoders:
            return None
        return torch.cat([self.encode(video) for video in ray_videos(cameras, size, frames)], dim=2)

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer, without what `prepare` remembered."""
        memory = context.memory or Memory(offsets=self._offsets(canvas))
        told: dict[str, Any] = {"chosen": memory.generated, "past": memory.past, "offsets": memory.offsets}
        if memory.past is None and self.given_attention == "one_way":
            told["mask"] = _one_way(self._given(canvas))
        time = self.path.model_time(u).float()
        if self.spec.time == "per_token":
            told["clean"] = self._given(canvas)
            time = torch.stack([time, self.path.model_time(torch.zeros_like(u)).float()], dim=1)
        return self._forward(noisy, time, canvas, context, **told)

    def prepare(self, canvas: Canvas, context: Context) -> Context:
        """What cameras say; keys and values of the given tokens, where they may be remembered."""
        given, offsets = self._given(canvas), self._offsets(canvas)
        if not self.cache_given or not bool((given == given[:1]).all()) or not bool(given.any()):
            return context if offsets is None else replace(context, memory=Memory(offsets=offsets))
        record: list[tuple[Tensor, Tensor]] = []
        clean = torch.zeros(len(given), device=given.device)
        indices = (given[0].nonzero()[:, 0], (~given[0]).nonzero()[:, 0])
        told = {"record": record, "offsets": offsets}
        self._forward(canvas.clean, clean, canvas, context, chosen=indices[0], **told)
        return replace(context, memory=Memory(indices[1], record, offsets))

    def _offsets(self, canvas: Canvas) -> Float[Tensor, "blocks b f width"] | None:
        return self.denoiser.camera_encoders(canvas.camera_latents) if self.camera_encoders else None

    def _given(self, canvas: Canvas) -> Bool[Tensor, "b n"]:
        p = self.spec.patch
        return canvas.given[:, 0, :, ::p, ::p].flatten(1)

    def _forward(
        self,
        noisy: Float[Tensor, "b c f h w"],
        time: Float[Tensor, "b *two"],
        canvas: Canvas,
        context: Context,
        **tokens: Any,
    ) -> Float[Tensor, "b c f h w"]:
        text, native = context.tokens.to(noisy), None
        images = None if context.images is None else context.images.to(noisy)
        if canvas.image is not None:
            image = torch.where(canvas.given, canvas.clean, canvas.image)
            given = canvas.given.to(noisy).expand(-1, self.codec.temporal_stride, -1, -1, -1)
            native = torch.cat([given, image], dim=1)
        if images is not None:
            text = functional.pad(text, (0, 0, 0, self.TEXT_LENGTH - text.shape[1]))
        seen = self.network_input(noisy, canvas, context, native, tokens.get("chosen"))
        return self.denoiser(seen, time, text, images, **tokens)


class Memory(NamedTuple):
    """What is remembered while a canvas is sampled.

    Attributes:
        generated: the tokens that are computed in every step; None for all.
        past: keys and values of the others, block by block.
        offsets: what camera encoders say.
    """

    generated: Int[Tensor, "q"] | None = None
    past: list[tuple[Tensor, Tensor]] | None = None
    offsets: Float[Tensor, "blocks b f width"] | None = None


def _one_way(given: Bool[Tensor, "b n"]) -> Bool[Tensor, "b 1 n n"]:
    """Generated tokens look at all, given ones at given ones."""
    return (~given[:, :, None] | given[:, None, :])[:, None]
