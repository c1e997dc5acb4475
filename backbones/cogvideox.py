"""CogVideoX (arXiv 2408.06072) through diffusers: transformer, video autoencoder and T5, or a tiny twin.

Reading order: the video autoencoder, the network, the backbone.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import NoisePath, TimeSampling, VariancePreserving
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.codecs.autoencoder import ScaledAutoencoder
from backbones.codecs.base import LatentCodec
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.conditions.t5 import T5Prompts


class CogVideoXVAE(ScaledAutoencoder):
    """CogVideoX's video autoencoder: 16 channels, 8x in space, 4x in time.

    It is not causal: the first latent frame of a clip has seen up to eight later frames, which is why the
    canvas takes the first frame encoded alone. Clips of 8k + 1 frames come back with as many frames as went
    in.
    """

    Autoencoder = AutoencoderKLCogVideoX
    causal = "blocks"

    def configure(self, config: Any) -> None:
        """Clips of pairs of blocks; 1.5 was conditioned on pictures divided by the scale, not multiplied."""
        self.channels, self.scale = config.latent_channels, config.scaling_factor
        self.spatial_stride = 2 ** (len(config.block_out_channels) - 1)
        self.temporal_stride = int(config.temporal_compression_ratio)
        self.frame_multiple = 2 * self.temporal_stride
        if config.invert_scale_latents:
            self.image_scale = self.scale**-2


class CogVideoXTransformer(CogVideoXTransformer3DModel):
    """diffusers' CogVideoX with its time embedding in float32."""

    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_embedding", "ofs_embedding"]


class CogVideoX(VideoBackbone):
    """A CogVideoX denoiser on the canvas: 2B, 5B, 5B image to video, and 1.5; all positions share one time.

    An image-to-video network takes, beside the noisy latents, the first frame's latent and zeros after it;
    later frames that are given stand there as they are. Tokens of 1.5 span two latent frames, so its segments
    begin with a copy of their first frame where their number is odd. The picture condition is then at that
    copy alone, as the model was trained and as its pipeline has it, also where the first frame is given.
    """

    Denoiser = CogVideoXTransformer
    input_projection = "patch_embed.proj"
    blocks = ("transformer_blocks",)
    fp32_parts = ("norm1", "norm2", "norm_out")  # which turn the time into scales and shifts

    OFFSET = 2.0  # the constant condition of the released image-to-video 1.5

    def released_codec(self, pretrained: str) -> LatentCodec:
        """CogVideoX's video autoencoder."""
        return CogVideoXVAE(pretrained)

    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """T5 v1.1-XXL; padding tokens have states of their own."""
        return T5Prompts(pretrained, encoder="T5EncoderModel", length=226, padding="states")

    def released_path(self) -> NoisePath:
        """Variance preserving, as 5B and 1.5; 2B has `snr_shift` 3. Levels nearly uniform, as trained."""
        return VariancePreserving(sampling=TimeSampling(std=1.7), snr_shift=1.0)

    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Latent channels and text width."""
        channels = self.codec.channels
        taken = architecture.get("in_channels", channels)
        return {"in_channels": taken, "out_channels": channels, "text_embed_dim": self.prompts.width}

    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """Equal channels, or twice as many for image to video; positions that can be computed."""
        codec, taken = self.codec, config["in_channels"]
        if taken not in (codec.channels, 2 * codec.channels) or config["out_channels"] != codec.channels:
            raise InvalidValue(
                f"CogVideoX: the transformer takes {taken} channels and makes {config['out_channels']}, the "
                f"video autoencoder makes {codec.channels}; this backbone needs {codec.channels} (text to "
                f"video) or {2 * codec.channels} (image to video) in, {codec.channels} out: take both "
                "from one release"
            )
        strides = (codec.spatial_stride, codec.temporal_stride, codec.frame_multiple)
        learned = config["use_learned_positional_embeddings"]
        length, wanted = self.prompts.length, config["max_text_seq_length"]
        if length != wanted and (learned or not config["use_rotary_positional_embeddings"]):
            raise InvalidValue(
                f"CogVideoX: prompts of {length} tokens, but this transformer's positions begin after "
                f"{wanted}; set `length: {wanted}` of the prompts"
            )
        return LatentSpec(
            codec.channels,
            *strides,
            patch=config["patch_size"],
            patch_time=config["patch_size_t"] or 1,
            only_grid=(config["sample_height"], config["sample_width"]) if learned else None,
        )

    def takes_image(self, config: Mapping[str, Any]) -> bool:
        """Image-to-video networks take twice the codec's channels."""
        return bool(config["in_channels"] != self.codec.channels)

    def encode_still(
        self, first: Float[Tensor, "b v 3 1 h w"], latents: Float[Tensor, "b v c 1 lh lw"], frames: int
    ) -> Float[Tensor, "b v c tl lh lw"] | None:
        """The first frame's latent and zeros, for image-to-video networks."""
        if not self.takes_image(self.denoiser.config):
            return None
        later = torch.zeros_like(latents).expand(-1, -1, -1, self.spec.latent_frames(frames) - 1, -1, -1)
        return torch.cat([latents, later], dim=3)

    def predict(
        self, noisy: Float[Tensor, "b c f h w"], u: Float[Tensor, "b"], canvas: Canvas, context: Context
    ) -> Float[Tensor, "b c f h w"]:
        """One forward of the transformer, which wants frames before channels."""
        image, config = None, self.denoiser.config
        if canvas.image is not None:
            image = torch.where(canvas.given_later, canvas.clean, canvas.image) * self.codec.image_scale
        offset = None if config.ofs_embed_dim is None else noisy.new_full((len(noisy),), self.OFFSET)
        prediction: Tensor = self.denoiser(
            hidden_states=self.network_input(noisy, canvas, context, image).transpose(1, 2),
            encoder_hidden_states=context.tokens.to(noisy),
            timestep=self.network_time(u, canvas),
            ofs=offset,
            image_rotary_emb=self._rotary(noisy),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2)

    def _rotary(self, noisy: Float[Tensor, "b c f h w"]) -> tuple[Tensor, Tensor] | None:
        """Rotary positions as in the released pipelines; None for 2B.

        1.0 scales them to the training resolution, 1.5 takes them as they are.
        """
        config = self.denoiser.config
        if not config.use_rotary_positional_embeddings:
            return None
        p, steps = config.patch_size, self.spec.patch_time
        grid = (noisy.shape[3] // p, noisy.shape[4] // p)
        base = (config.sample_height // p, config.sample_width // p)
        frames = noisy.shape[2] // steps
        how: dict[str, Any] = {"crops_coords": _region(grid, base)}
        if config.patch_size_t is not None:
            how = {"crops_coords": None, "grid_type": "slice", "max_size": grid}
        tables: tuple[Tensor, Tensor] = get_3d_rotary_pos_embed(
            config.attention_head_dim, grid_size=grid, temporal_size=frames, device=noisy.device, **how
        )
        return tables


def _region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a token grid lies in the training grid: as large as fits, centred (top left, bottom right)."""
    scale = min(base[0] / grid[0], base[1] / grid[1])
    h, w = round(grid[0] * scale), round(grid[1] * scale)
    top, left = round((base[0] - h) / 2), round((base[1] - w) / 2)
    return (top, left), (top + h, left + w)
