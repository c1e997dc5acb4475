"""Stable Video Diffusion (arXiv 2311.15127) through diffusers: UNet, video autoencoder, CLIP; or a tiny twin.

Reading order: the video autoencoder, the network, the backbone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import EDM, NoisePath
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.codecs.autoencoder import ScaledAutoencoder
from backbones.codecs.base import LatentCodec
from backbones.conditions.image_encoders import CLIPImages, ImageEncoder
from backbones.conditions.prompts import Context, PromptEncoder


class SVDVAE(ScaledAutoencoder):
    """SVD's video autoencoder: 4 channels, 8x in space; frames are encoded alone, the decoder looks around.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        architecture: constructor arguments of an autoencoder with random weights instead.
        dtype: the weights' precision.
        decode_chunk: frames decoded at once; they see one another, but nothing beyond.
    """

    Autoencoder = AutoencoderKLTemporalDecoder
    causal = "encoder"

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        decode_chunk: int = 14,
    ) -> None:
        super().__init__(pretrained, architecture, dtype)
        self.decode_chunk = decode_chunk

    def configure(self, config: Any) -> None:
        """Every frame is a latent frame; the network is conditioned on unscaled pictures."""
        self.channels, self.scale = config.latent_channels, config.scaling_factor
        self.spatial_stride = 2 ** (len(config.block_out_channels) - 1)
        self.temporal_stride = self.frame_multiple = 1
        self.image_scale = 1 / self.scale

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """The posterior's mode of every frame, scaled."""
        frames = rearrange(video, "n c t h w -> (n t) c h w").to(self.vae.dtype)
        latents = self.normalize(self.vae.encode(frames).latent_dist.mode().float()[:, :, None])[:, :, 0]
        return rearrange(latents, "(n t) c h w -> n c t h w", n=len(video))

    def decode_raw(self, raw: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """Video, some frames at a time."""
        clips = []
        for clip in raw.transpose(1, 2):
            parts = clip.split(self.decode_chunk)
            clips.append(torch.cat([self.vae.decode(part, num_frames=len(part)).sample for part in parts]))
        return torch.stack(clips).transpose(1, 2)


class NoPrompts(PromptEncoder):
    """For networks without a text condition: takes the empty prompt only."""

    width, length = 0, 1

    def encode(self, prompts: Sequence[str], device: torch.device) -> Context:
        """Tokens of width 0.

        Raises:
            ValueError: a prompt that is not empty.
        """
        self.check(prompts)
        nothing = torch.zeros(len(prompts), 0, device=device)
        return Context(nothing[:, None], nothing)

    def check(self, prompts: Iterable[str]) -> None:
        """Refuse prompts that are not empty."""
        given = next((prompt for prompt in prompts if prompt), None)
        if given is not None:
            raise InvalidValue(
                f"Stable Video Diffusion has no text condition, but got {given[:60]!r}; set `prompts` of the "
                "backbone (backbones.conditions.prompts.HashedWords, backbones.conditions.t5.T5Prompts), "
                "which adds a text path, or train with empty instructions"
            )


class FrameTimedUNet(UNetSpatioTemporalConditionModel):
    """diffusers' spatio-temporal UNet with a time of its own for every frame, and a text path.

    Attributes:
        text: zero-initialised map of the pooled prompt, added to the image tokens; None without text.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_embedding", "add_embedding"]

    text: nn.Linear | None

    def forward(
        self,
        sample: Float[Tensor, "b f e h w"],
        time: Float[Tensor, "b f"],
        images: Float[Tensor, "b n d"],
        added: Float[Tensor, "b 3"],
        pooled: Float[Tensor, "b k"],
    ) -> Float[Tensor, "b f c h w"]:
        """The network's prediction.

        Args:
            sample: input channels of the widened projection.
            time: a quarter of the logarithm of each frame's noise scale.
            images: image tokens.
            added: frames per second less one, motion bucket, noise in the picture condition.
            pooled: pooled prompts.
        """
        b, f = sample.shape[:2]
        if self.text is not None:
            images = images + self.text(pooled)[:, None]
        emb = self.time_embedding(self.time_proj(time.flatten()).to(sample.dtype))
        extra = self.add_embedding(self.add_time_proj(added.flatten()).reshape(b, -1).to(emb.dtype))
        common = {
            "temb": emb + extra.repeat_interleave(f, dim=0),
            "image_only_indicator": sample.new_zeros(b, f),
        }
        crossed = {**common, "encoder_hidden_states": images.repeat_interleave(f, dim=0)}
        x = self.conv_in(sample.flatten(0, 1))
        kept = [x]
        for block in self.down_blocks:
            x, skipped = block(hidden_states=x, **(crossed if _attends(block) else common))
            kept.extend(skipped)
        x = self.mid_block(hidden_states=x, **crossed)
        for block in self.up_blocks:
            skipped = tuple(kept[-len(block.resnets) :])
            del kept[-len(block.resnets) :]
            more = crossed if _attends(block) else common
            x = block(hidden_states=x, res_hidden_states_tuple=skipped, **more)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (b, f))


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


class SVD(VideoBackbone):
    """A Stable Video Diffusion denoiser on the canvas.

    Its temporal attention looks along one pixel, so segments lie side by side instead of one after the other,
    all equally long; where a plan keeps the first frame only, that frame is repeated, given and out of the
    loss. Every frame has the latent of its segment's first frame as a condition, and all of it CLIP's tokens
    of every view's picture. The released model knows no text: `prompts` adds a path for it.

    Args:
        pretrained: local folder or hub id of a released checkpoint.
        fps: frames per second, a condition of the network; between 5 and 30 for the released ones.
        motion_bucket: amount of motion, a condition of the network.
        options: the other arguments of `backbones.base.VideoBackbone`.
    """

    Denoiser = FrameTimedUNet
    folder = "unet"
    input_projection = "conv_in"
    blocks = ("down_blocks", "up_blocks")
    times = ("shared", "per_frame")
    fp32_parts = ("time_pos_embed",)

    def __init__(
        self, pretrained: str | None = None, *, fps: int = 7, motion_bucket: int = 127, **options: Any
    ) -> None:
        super().__init__(pretrained, **options)
        self.fps, self.motion_bucket = fps, motion_bucket

    def released_codec(self, pretrained: str) -> LatentCodec:
        """SVD's video autoencoder."""
        return SVDVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """None: the released model has no text condition."""
        return NoPrompts()

    def released_images(self, pretrained: str, config: Mapping[str, Any]) -> ImageEncoder | None:
        """CLIP's projected embedding."""
        return CLIPImages(pretrained, features="projected", processor="feature_extractor")

    def released_path(self) -> NoisePath:
        """EDM with SVD's noise scales."""
        return EDM()

    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Noisy and picture channels, image width."""
        channels = self.codec.channels
        widths = {"in_channels": 2 * channels, "out_channels": channels}
        return widths if self.images is None else {**widths, "cross_attention_dim": self.images.width}

    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """Twice the codec's channels; latent sizes that every level can halve."""
        codec, taken, made = self.codec, config["in_channels"], config["out_channels"]
        if (taken, made) != (2 * codec.channels, codec.channels):
            raise InvalidValue(
                f"SVD: the UNet takes {taken} channels and makes {made}, the video autoencoder makes "
                f"{codec.channels}; this backbone needs {2 * codec.channels} in and {codec.channels} out: "
                "take both from one release"
            )
        if codec.temporal_stride != 1:
            raise InvalidValue(
                f"SVD: the codec squeezes {codec.temporal_stride} frames into one, this network wants every "
                "frame; take a codec with a temporal stride of 1 (PatchCodec: frames: 1)"
            )
        patch = 2 ** (len(config["block_out_channels"]) - 1)
        return LatentSpec(codec.channels, codec.spatial_stride, 1, 1, patch=patch, pack_axis="width")

    def takes_image(self, config: Mapping[str, Any]) -> bool:
        """Always."""
        return True

    def extras(self, config: Mapping[str, Any]) -> dict[str, nn.Module | None]:
        """The text path, if there are prompts."""
        if not self.prompts.width:
            return {"text": None}
        text = nn.Linear(self.prompts.width, config["cross_attention_dim"])
        nn.init.zeros_(text.weight)
        nn.init.zeros_(text.bias)
        return {"text": text}

    def encode_still(
        self, first: Float[Tensor, "b v 3 1 h w"], latents: Float[Tensor, "b v c 1 lh lw"], frames: int
    ) -> Float[Tensor, "b v c tl lh lw"] | None:
        """The first frame's latent, unscaled, on every frame."""
        return (latents * self.codec.image_scale).expand(-1, -1, -1, frames, -1, -1)

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the UNet, which wants frames before channels."""
        if context.images is None or canvas.image is None:
            raise InvalidValue(
                "SVD needs the observed pictures: image tokens in the context, stills on the canvas"
            )
        time = self.network_time(u, canvas)
        time = time[:, None].expand(-1, noisy.shape[2]) if time.ndim == 1 else time
        # The picture is clean, so its noise condition is 0 (the released pipeline adds .02 and passes that).
        added = noisy.new_tensor([self.fps - 1, self.motion_bucket, 0.0]).expand(len(noisy), -1)
        prediction: Tensor = self.denoiser(
            self.network_input(noisy, canvas, context, canvas.image).transpose(1, 2),
            time,
            context.images.to(noisy),
            added,
            context.pooled.to(noisy),
        )
        return prediction.transpose(1, 2)
