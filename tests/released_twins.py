"""Released models at tiny sizes with random weights, as the genuine pipelines of diffusers write them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.diffusion.noise_paths import FlowMatching, NoisePath
from backbones.base import VideoBackbone
from backbones.conditions.prompts import Context
from backbones.wan import Wan

PROMPT = "reach the red ball"


def wan_network(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16,
        "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2,
    }  # fmt: skip
    return WanTransformer3DModel(**{**sizes, **changes})


def wan_vae(channels: int = 16) -> AutoencoderKLWan:
    torch.manual_seed(1)
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels} if channels != 16 else {}
    return AutoencoderKLWan(base_dim=8, z_dim=channels, num_res_blocks=1, **statistics)


def clip() -> tuple[CLIPVisionModel, CLIPImageProcessor]:
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return CLIPVisionModel(vision).eval(), processor


def cogvideox_network(frames: int = 9, **changes: Any) -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16,
        "time_embed_dim": 8, "text_embed_dim": 16, "num_layers": 2, "sample_width": 4, "sample_height": 4,
        "sample_frames": frames, "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    network = CogVideoXTransformer3DModel(**{**sizes, **changes})
    if changes.get("use_learned_positional_embeddings"):  # which are no sines
        torch.nn.init.normal_(network.patch_embed.pos_embedding)
    return network


def cogvideox_vae(later: bool = False) -> AutoencoderKLCogVideoX:
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 16), latent_channels=16, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        invert_scale_latents=later,
    )  # fmt: skip
    with torch.no_grad():  # the pipeline samples the posterior: make it as narrow as it gets
        vae.encoder.conv_out.conv.weight[16:] = 0
        vae.encoder.conv_out.conv.bias[16:] = -40
    return vae


def cogvideox_scheduler(snr_shift: float) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        snr_shift_scale=snr_shift, timestep_spacing="trailing", rescale_betas_zero_snr=True,
        prediction_type="v_prediction", set_alpha_to_one=True, clip_sample=False,
    )  # fmt: skip


def picture(size: int = 32) -> torch.Tensor:
    """One picture in [-1, 1], of 256 levels, as a batch of one view's first frame."""
    levels = torch.randint(256, (1, 1, 3, 1, size, size), generator=torch.Generator().manual_seed(3))
    return levels / 127.5 - 1


def shot(size: int = 32) -> Image.Image:
    """The same picture."""
    return Image.fromarray(((picture(size)[0, 0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def clip_of(backbone: VideoBackbone, frames: int, given: bool = False, size: int = 32) -> Canvas:
    """The canvas of one view's video of which the first frame is known, but given only where asked for.

    The pipelines of networks that are shown a picture generate the first frame, too.
    """
    image = picture(size)
    first = backbone.encode(image)
    still = backbone.encode_still(image, first, frames)
    cameras = Cameras(torch.eye(3)[None, None, None] * 30, torch.eye(4)[None, None, None])
    canvas = build_canvas(
        plan("video_only"), backbone.spec, (size, size), cameras, torch.ones(1, 1, dtype=torch.bool),
        first, first, latent_frames=backbone.spec.latent_frames(frames),
        stills=None if still is None else (still, still),
    )  # fmt: skip
    return canvas if given else replace(canvas, given=torch.zeros_like(canvas.given))


def told(backbone: VideoBackbone, prompt: str, size: int = 32) -> Context:
    return backbone.encode_context([prompt], picture(size), torch.ones(1, 1, dtype=torch.bool))


def noise_for(canvas: Canvas) -> torch.Tensor:
    return torch.randn(canvas.clean.shape, generator=torch.Generator().manual_seed(1))


def saved(pipeline: Any, folder: Path) -> str:
    """The pipeline's folder, written by diffusers."""
    pipeline.save_pretrained(folder)
    return str(folder)


class OurLevels(FlowMatchEulerDiscreteScheduler):
    """Euler steps between given noise levels: Wan's released solver, UniPC, is not among ours."""

    path: NoisePath = FlowMatching(sampler_shift=5.0)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(sigmas=self.path.grid(num_inference_steps)[:-1].tolist(), device=device)


class ShownWan(Wan):
    """Wan whose canvas gives nothing, but shows the first frame as given, as the pipeline does."""

    def predict(self, noisy: torch.Tensor, u: torch.Tensor, canvas: Canvas, context: Context) -> torch.Tensor:
        given = torch.zeros_like(canvas.given)
        given[:, :, 0] = True
        return super().predict(noisy, u, replace(canvas, given=given), context)
