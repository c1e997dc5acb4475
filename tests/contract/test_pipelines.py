"""Sampling is that of the genuine pipelines of diffusers, from the first step to the last latent.

Each released family and mode: tiny random networks that the genuine pipeline has saved, the same noise,
prompt embeddings and picture; LTX-Video, Cosmos-Predict2 and Mochi 1 have theirs, from the prompt on, in
`tests/unit/test_ltx.py`, `test_cosmos.py` and `test_mochi.py`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    WanImageToVideoPipeline,
    WanPipeline,
)
from released_twins import (
    PROMPT,
    OurLevels,
    ShownWan,
    clip,
    clip_of,
    cogvideox_network,
    cogvideox_scheduler,
    cogvideox_vae,
    noise_for,
    saved,
    shot,
    told,
    wan_network,
    wan_vae,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ai_wam.diffusion.noise_paths import VariancePreserving
from backbones.cogvideox import CogVideoX
from backbones.conditions.prompts import Context, HashedWords
from backbones.svd import SVD
from backbones.wan import Wan

STEPS, SIZE = 4, 32
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(pipeline: Any, frames: int, context: Context, **inputs: Any) -> torch.Tensor:
    """The last latents of the genuine pipeline."""
    return quiet(pipeline)(
        prompt_embeds=context.tokens, height=SIZE, width=SIZE, num_frames=frames, num_inference_steps=STEPS,
        output_type="latent", **inputs,
    ).frames  # fmt: skip


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("mode", ["2.1", "2.1 I2V", "2.2 I2V", "2.2 TI2V text", "2.2 TI2V picture"])
def test_wan(tmp_path: Path, mode: str, guidance: float):
    """2.2 I2V is here one network of A14B: image to video without image tokens."""
    shown, several = mode.endswith("I2V"), "TI2V" in mode
    changes: dict[str, Any] = {"in_channels": 36} if shown else {}
    parts: dict[str, Any] = {"expand_timesteps": several}
    if mode == "2.1 I2V":
        changes |= {"image_dim": 32, "added_kv_proj_dim": 24}
        parts["image_encoder"], parts["image_processor"] = clip()
    kind = WanPipeline if mode in ("2.1", "2.2 TI2V text") else WanImageToVideoPipeline
    pipeline = kind(
        tokenizer=None, text_encoder=None, vae=wan_vae(), transformer=wan_network(**changes),
        scheduler=OurLevels(), **parts,
    )  # fmt: skip
    model = (ShownWan if shown else Wan)(
        saved(pipeline, tmp_path), prompts=HashedWords(16, 512), path=OurLevels.path,
        time="per_token" if several else "shared", known_observation=False,
    )  # fmt: skip
    canvas = clip_of(model, 9, given=mode == "2.2 TI2V picture")
    context, null, noise = told(model, PROMPT), told(model, ""), noise_for(canvas)
    inputs: dict[str, Any] = {"negative_prompt_embeds": null.tokens, "guidance_scale": guidance}
    if kind is WanImageToVideoPipeline:
        inputs["image"] = shot()
    if mode == "2.1 I2V":  # tokens of a resized picture: `tests/unit/test_released_weights.py` compares them
        tokens = pipeline.encode_image(shot(), torch.device("cpu"))
        context, null = (replace(each, images=tokens) for each in (context, null))
    wanted = theirs(pipeline, 9, context, latents=noise.clone(), **inputs)
    found = model.sample(canvas, context, noise, STEPS, guidance, null)
    assert float((wanted - noise).abs().max()) > 0.1
    torch.testing.assert_close(found, wanted, **CLOSE)


COGVIDEOX = {  # network, picture shown, frames, shift; 9 and 17 frames are 3 and 5 latent frames
    "2B": ({"use_rotary_positional_embeddings": False}, False, 9, 3.0),
    "5B": ({}, False, 9, 1.0),
    "5B I2V": ({"use_learned_positional_embeddings": True}, True, 9, 1.0),
    "1.5": ({"patch_size_t": 2}, False, 13, 1.0),
    "1.5 padded": ({"patch_size_t": 2}, False, 9, 1.0),
    "1.5 I2V": ({"patch_size_t": 2, "ofs_embed_dim": 8}, True, 13, 1.0),
    "1.5 I2V padded": ({"patch_size_t": 2, "ofs_embed_dim": 8}, True, 9, 1.0),
    "1.5 I2V padded, longer": ({"patch_size_t": 2, "ofs_embed_dim": 8}, True, 17, 1.0),
}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("mode", COGVIDEOX)
def test_cogvideox(tmp_path: Path, mode: str, guidance: float):
    changes, shown, frames, shift = COGVIDEOX[mode]
    later = "patch_size_t" in changes
    kind = CogVideoXImageToVideoPipeline if shown else CogVideoXPipeline
    pipeline = kind(
        tokenizer=None, text_encoder=None, vae=cogvideox_vae(later), scheduler=cogvideox_scheduler(shift),
        transformer=cogvideox_network(frames, in_channels=32 if shown else 16, **changes),
    )  # fmt: skip
    model = CogVideoX(
        saved(pipeline, tmp_path), prompts=HashedWords(16, 226), path=VariancePreserving(snr_shift=shift),
        known_observation=False,
    )  # fmt: skip
    model.spec = replace(model.spec, frame_multiple=4)  # the network takes any number of latent frames
    canvas = clip_of(model, frames)
    assert canvas.clean.shape[2] == ({9: 4, 13: 4, 17: 6}[frames] if later else 3)
    context, null, noise = told(model, PROMPT), told(model, ""), noise_for(canvas)
    inputs: dict[str, Any] = {"negative_prompt_embeds": null.tokens, "guidance_scale": guidance}
    if shown:
        inputs["image"] = shot()
    wanted = theirs(pipeline, frames, context, latents=noise.transpose(1, 2).clone(), **inputs)
    found = model.sample(canvas, context, noise, STEPS, guidance, null)
    assert float((wanted.transpose(1, 2) - noise).abs().max()) > 0.1
    torch.testing.assert_close(found, wanted.transpose(1, 2), **CLOSE)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of the scheduler
def test_svd(tmp_path: Path):
    """Without guidance: ours does not drop the picture and does not rise from frame to frame."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        cross_attention_dim=16, block_out_channels=(32, 32), num_attention_heads=(2, 2), layers_per_block=1,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * 4, layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 4
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224,
        patch_size=112, projection_dim=16,
    )  # fmt: skip
    extractor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading",
        timestep_type="continuous", steps_offset=1,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(vision).eval()
    pipeline = quiet(StableVideoDiffusionPipeline(vae, encoder, unet, scheduler, extractor))
    model = SVD(saved(pipeline, tmp_path), time="shared", known_observation=False)
    canvas, size = clip_of(model, 3, size=64), 64
    noise = noise_for(canvas)
    wanted = pipeline(
        shot(size), height=size, width=size, num_frames=3, num_inference_steps=STEPS, fps=7,
        noise_aug_strength=0.0, min_guidance_scale=1.0, max_guidance_scale=1.0,
        latents=noise.transpose(1, 2), output_type="latent",
    ).frames  # fmt: skip
    tokens = pipeline._encode_image(shot(size), "cpu", 1, False)  # compared in `tests/unit/test_svd.py`
    context = replace(told(model, "", size), images=tokens)
    found = model.sample(canvas, context, noise, STEPS)
    torch.testing.assert_close(found, wanted.transpose(1, 2), **CLOSE)
