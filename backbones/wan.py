"""Wan (arXiv 2503.20314) through diffusers: WanTransformer3DModel, AutoencoderKLWan and UMT5, or a tiny twin.

Reading order: the video autoencoder, the backbone; the network is in `backbones.networks.wan_network`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import FlowMatching, NoisePath, TimeSampling
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.codecs.autoencoder import NormalizedAutoencoder
from backbones.codecs.base import LatentCodec
from backbones.conditions.block_conditions import CameraEncoders, ray_videos
from backbones.conditions.image_encoders import CLIPImages, ImageEncoder
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.conditions.t5 import T5Prompts
from backbones.networks.two_experts import FOLDERS, Expert, Experts, boundary_of, chosen_expert, share_of
from backbones.networks.wan_attention import WanAttention
from backbones.networks.wan_network import WanNetwork


class WanVAE(NormalizedAutoencoder):
    """Wan's causal video autoencoder (2.1: 16 channels, 8x; 2.2: 48 channels, 16x), normalized per channel.

    It is exactly causal: the first latent frame of a clip equals the first frame encoded alone.
    """

    Autoencoder = AutoencoderKLWan
    causal = "exact"

    def configure(self, config: Any) -> None:
        """Statistics and strides are in the configuration."""
        self.channels = config.z_dim
        self.spatial_stride, self.temporal_stride = config.scale_factor_spatial, config.scale_factor_temporal
        self.frame_multiple = self.temporal_stride
        self.set_statistics(config.latents_mean, config.latents_std)


class Wan(VideoBackbone):
    """A Wan denoiser on the canvas: text to video (2.1), image to video (2.1), both (2.2 TI2V), or 2.2 A14B.

    A14B, from text or from a picture, is two networks: one for noise levels from `boundary` on, one for those
    below (`backbones.networks.two_experts`). Each is as large as Wan 2.1 14B, so both in float32 are 114 GB
    of weights, 57 GB in bfloat16; one expert can be trained at a time, acting needs both.

    An image-to-video network takes, beside the noisy latents, which frames are given (one channel per video
    frame of a latent frame) and the latents of a clip whose later frames are grey; given frames stand there
    as they are. Its image tokens are those of every view, one after the other.

    Args:
        pretrained: local folder or hub id of a released checkpoint.
        given_attention: "full" lets every token look at every other one, as released; "one_way" keeps given
            tokens from looking at generated ones, so that what they say does not change while sampling. A
            model must be trained the way it is used.
        cache_given: compute given tokens once per sample instead of in every step; the result is the same.
            Needs one-way attention and per-token time; rows with different views missing are not cached.
        camera_encoders: condition every block on the cameras as the released Action Images checkpoint does.
        expert: of a release of two networks, which ones are loaded and trained: "high", "low" or "both";
            both, if left out. One alone is trained on its share of the noise levels, and cannot sample.
        boundary: the noise level from which on the expert "high" computes; the released one if left out. With
            an `architecture` it makes two networks.
        low_guidance: guidance scale of the expert "low", where samples are guided; the same if left out.
        options: the other arguments of `backbones.base.VideoBackbone`.

    Raises:
        ValueError: a cache that would not be exact; experts of a release that has one network.
    """

    Denoiser = WanNetwork
    input_projection = "patch_embedding"
    blocks = ("blocks",)
    times = ("per_token", "shared")
    fp32_parts = ("time_proj",)

    TEXT_LENGTH = 512  # image-to-video attention splits image and text tokens at this number

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        given_attention: Literal["full", "one_way"] = "full",
        cache_given: bool = False,
        camera_encoders: bool = False,
        expert: Expert | None = None,
        boundary: float | None = None,
        low_guidance: float | None = None,
        **options: Any,
    ) -> None:
        self.boundary = boundary_of(pretrained, boundary, FOLDERS)
        self.expert = chosen_expert(expert, self.boundary, pretrained)
        if self.expert == "low":
            self.folder = FOLDERS[1]
        if low_guidance is not None and self.expert != "both":
            raise InvalidValue(
                f"low_guidance {low_guidance} needs expert: both, got {self.expert}; leave it out"
            )
        self.low_guidance = low_guidance
        self.camera_encoders = camera_encoders  # what `extras` asks
        self.given_attention, self.cache_given = given_attention, cache_given  # what `trained_as` says
        super().__init__(pretrained, **options)
        if self.boundary is not None:
            self.path = share_of(self.path, self.expert, self.boundary)
        for network in self.networks().values():
            for block in network.blocks:
                block.attn1.set_processor(WanAttention())
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

    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels, text width and image width."""
        channels = self.codec.channels
        taken = architecture.get("in_channels", channels)
        widths = {"in_channels": taken, "out_channels": channels, "text_dim": self.prompts.width}
        return widths if self.images is None else {**widths, "image_dim": self.images.width}

    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """Equal channels, or those of an image-to-video network."""
        codec, taken = self.codec, config["in_channels"]
        with_image = 2 * codec.channels + codec.temporal_stride
        if taken not in (codec.channels, with_image) or config["out_channels"] != codec.channels:
            raise InvalidValue(
                f"Wan: the transformer takes {taken} channels and makes {config['out_channels']}, the video "
                f"autoencoder makes {codec.channels}; this backbone needs {codec.channels} (text to video) "
                f"or {with_image} (image to video) in, {codec.channels} out: take both from one release"
            )
        if config["image_dim"] is not None and self.prompts.length > self.TEXT_LENGTH:
            raise InvalidValue(
                f"Wan: prompts of {self.prompts.length} tokens, limit {self.TEXT_LENGTH} for networks that "
                "take image tokens, which stand after them; set a smaller `length` of the prompts"
            )
        steps, patch, _ = config["patch_size"]
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        return LatentSpec(codec.channels, *strides, patch=patch, patch_time=steps)

    def takes_image(self, config: Mapping[str, Any]) -> bool:
        """Image-to-video networks take more channels than the codec makes."""
        return bool(config["in_channels"] != self.codec.channels)

    def encode_still(
        self, first: Float[Tensor, "b v 3 1 h w"], latents: Float[Tensor, "b v c 1 lh lw"], frames: int
    ) -> Float[Tensor, "b v c tl lh lw"] | None:
        """Latents of the first frame followed by grey, for image-to-video networks."""
        if not self.takes_image(self.denoiser.config):
            return None
        grey = torch.zeros_like(first).expand(-1, -1, -1, frames - 1, -1, -1)
        return self.encode(torch.cat([first, grey], dim=3))

    def extras(self, config: Mapping[str, Any]) -> dict[str, nn.Module | None]:
        """Camera latents as the released Action Images checkpoint has them."""
        width, blocks = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
        return {"camera_encoders": CameraEncoders(width, blocks) if self.camera_encoders else None}

    def trained_as(self) -> dict[str, Any]:
        """The attention of given tokens, and the boundary of two experts, too."""
        shared = {} if self.boundary is None else {"boundary": self.boundary}
        return {**super().trained_as(), "given_attention": self.given_attention, **shared}

    @property
    def folders(self) -> tuple[str, ...]:
        """Of one network, or of both experts."""
        return FOLDERS if self.expert == "both" else (self.folder,)

    @property
    def parts(self) -> set[str]:
        """Of a release of two experts, the one that is not loaded, too."""
        return super().parts if self.boundary is None else {*super().parts, *FOLDERS}

    def combined(self, networks: Sequence[Any]) -> Experts:
        """Both experts."""
        assert self.boundary is not None
        high, low = networks
        return Experts(high, low, self.boundary)

    def networks(self) -> dict[str, Any]:
        """One network, or both experts."""
        if isinstance(self.denoiser, Experts):
            return dict(zip(FOLDERS, (self.denoiser.high, self.denoiser.low), strict=True))
        return super().networks()

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard one network over a mesh.

        Raises:
            ValueError: two experts, of which processes would wait for one another's.
        """
        if isinstance(self.denoiser, Experts):
            raise InvalidValue(
                "Wan: two experts are not sharded together, as processes draw noise levels of different "
                "ones; shard one at a time (expert: high, then expert: low), or train without sharding"
            )
        super().shard(mesh)

    def guidance_at(self, u: Float[Tensor, "b"], guidance: float) -> float | Float[Tensor, "b 1 1 1 1"]:
        """The scale, or that of the expert for low noise."""
        if self.low_guidance is None or self.boundary is None:
            return guidance
        return torch.where(u >= self.boundary, guidance, self.low_guidance).view(-1, 1, 1, 1, 1)

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
        """One forward of the transformer, or of the experts for the rows' noise levels."""
        if isinstance(self.denoiser, Experts):
            return self.denoiser.predict(self._predict, noisy, u, canvas, context)
        return self._predict(self.denoiser, noisy, u, canvas, context)

    def _predict(
        self,
        network: Any,
        noisy: Float[Tensor, "b c f h w"],
        u: Float[Tensor, "b"],
        canvas: Canvas,
        context: Context,
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of one network, without the cache of `prepare`."""
        memory = context.memory or Memory(offsets=self._offsets(network, canvas))
        extra: dict[str, Any] = {"chosen": memory.generated, "past": memory.past, "offsets": memory.offsets}
        if memory.past is None and self.given_attention == "one_way":
            extra["mask"] = _one_way(self._given(canvas))
        time = self.path.model_time(u).float()
        if self.spec.time == "per_token":
            extra["clean"] = self._given(canvas)
            time = torch.stack([time, self.path.model_time(torch.zeros_like(u)).float()], dim=1)
        return self._forward(network, noisy, time, canvas, context, **extra)

    def prepare(self, canvas: Canvas, context: Context) -> Context:
        """Offsets of the camera encoders; keys and values of the given tokens, where they may be cached.

        Of two experts, each has its own.

        Raises:
            ValueError: one expert of two, which knows a part of the noise levels only.
        """
        if self.boundary is not None and self.expert != "both":
            raise InvalidValue(
                f"Wan: expert: {self.expert} alone cannot sample: it is not for the noise levels "
                f"{'below' if self.expert == 'high' else 'from'} {self.boundary}. Load both (expert: both) "
                "from a folder that has transformer and transformer_2; train one with "
                "--trainer.limit_val_batches 0"
            )
        found = {name: self._memory(one, canvas, context) for name, one in self.networks().items()}
        if not any(found.values()):
            return context
        return replace(context, memory=found if len(found) > 1 else found[self.folder])

    def _memory(self, network: Any, canvas: Canvas, context: Context) -> "Memory | None":
        """The part of a forward that is computed once per canvas; None if there is none."""
        given, offsets = self._given(canvas), self._offsets(network, canvas)
        if not self.cache_given or not bool((given == given[:1]).all()) or not bool(given.any()):
            return None if offsets is None else Memory(offsets=offsets)
        record: list[tuple[Tensor, Tensor]] = []
        clean = torch.zeros(len(given), device=given.device)
        indices = (given[0].nonzero()[:, 0], (~given[0]).nonzero()[:, 0])
        extra = {"record": record, "offsets": offsets}
        self._forward(network, canvas.clean, clean, canvas, context, chosen=indices[0], **extra)
        return Memory(indices[1], record, offsets)

    def _offsets(self, network: Any, canvas: Canvas) -> Float[Tensor, "blocks b f width"] | None:
        return network.camera_encoders(canvas.camera_latents) if self.camera_encoders else None

    def _given(self, canvas: Canvas) -> Bool[Tensor, "b n"]:
        p = self.spec.patch
        return canvas.given[:, 0, :, ::p, ::p].flatten(1)

    def _forward(
        self,
        network: Any,
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
        seen = self.network_input(noisy, canvas, context, native, tokens.get("chosen"), network)
        prediction: Tensor = network(seen, time, text, images, **tokens)
        return prediction


class Memory(NamedTuple):
    """Cache of one canvas while it is sampled.

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
