"""Low-rank adapters in files: merged without loss, and alone as diffusers' pipelines and peft load them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline, UNetSpatioTemporalConditionModel, WanPipeline
from peft import PeftModel
from released_twins import (
    PROMPT,
    OurLevels,
    clip_of,
    cogvideox_network,
    cogvideox_scheduler,
    cogvideox_vae,
    noise_for,
    saved,
    told,
    wan_network,
    wan_vae,
)
from safetensors.torch import load_file

from ai_wam.cli.export_checkpoint import write_adapters, write_backbone
from ai_wam.diffusion.noise_paths import VariancePreserving
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.cogvideox import CogVideoX
from backbones.conditions.image_encoders import Thumbnails
from backbones.conditions.prompts import HashedWords
from backbones.svd import SVD
from backbones.wan import Wan
from backbones.weights.lora import LoRA
from backbones.weights.training_options import Training

TUNED = LoRA(rank=2, alpha=6.0)


def learned(model: VideoBackbone, size: float = 0.3) -> Any:
    """The model after a fine-tune of its adapters."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size, generator=g)
    return model


def wan_pipeline(experts: bool) -> Any:
    parts = {"transformer_2": wan_network(5), "boundary_ratio": 0.875} if experts else {}
    return WanPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), transformer=wan_network(), scheduler=OurLevels(),
        **parts,
    )  # fmt: skip


def last_latents(pipeline: Any, model: VideoBackbone, noise: torch.Tensor) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=told(model, PROMPT).tokens, height=32, width=32, num_frames=9, guidance_scale=1.0,
        num_inference_steps=8, output_type="latent", latents=noise.clone(),
    ).frames  # fmt: skip


@pytest.mark.parametrize("experts", [False, True], ids=["one network", "two experts"])
def test_the_genuine_wan_pipeline_loads_the_adapters(tmp_path: Path, experts: bool):
    pipeline = wan_pipeline(experts)
    model = learned(
        Wan(
            saved(pipeline, tmp_path),
            prompts=HashedWords(16, 512),
            path=OurLevels.path,
            time="shared",
            known_observation=False,
            training=Training(lora=TUNED),
        )
    )
    canvas = clip_of(model, 9)
    noise = noise_for(canvas)
    before = last_latents(pipeline, model, noise)
    out = tmp_path / "adapters"
    said = write_adapters(model, out, None)
    names = ["pytorch_lora_weights.safetensors", "pytorch_lora_weights_2.safetensors"][: 1 + experts]
    assert sorted(file.name for file in out.iterdir()) == names
    assert said == f"low-rank adapters alone in float32: {' and '.join(names)}"
    for index, name in enumerate(names):
        pipeline.load_lora_weights(out, weight_name=name, load_into_transformer_2=bool(index))
    wanted = model.sample(canvas, told(model, PROMPT), noise, 8)
    assert float((wanted - before).abs().max()) > 0.01
    torch.testing.assert_close(last_latents(pipeline, model, noise), wanted, atol=1e-5, rtol=1e-5)


def test_the_genuine_cogvideox_pipeline_loads_the_adapters(tmp_path: Path):
    pipeline = CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=cogvideox_vae(), transformer=cogvideox_network(),
        scheduler=cogvideox_scheduler(1.0),
    )  # fmt: skip
    model = learned(
        CogVideoX(
            saved(pipeline, tmp_path),
            prompts=HashedWords(16, 226),
            path=VariancePreserving(snr_shift=1.0),
            known_observation=False,
            training=Training(lora=TUNED),
        )
    )
    canvas = clip_of(model, 9)
    noise = noise_for(canvas)
    before = last_latents(pipeline, model, noise.transpose(1, 2))
    write_adapters(model, tmp_path / "adapters", None)
    pipeline.load_lora_weights(tmp_path / "adapters")
    wanted = model.sample(canvas, told(model, PROMPT), noise, 8).transpose(1, 2)
    assert float((wanted - before).abs().max()) > 0.01
    found = last_latents(pipeline, model, noise.transpose(1, 2))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_peft_loads_the_adapters_of_a_unet(tmp_path: Path):
    """diffusers has no loader for Stable Video Diffusion."""
    size = {
        "block_out_channels": (32, 32), "num_attention_heads": (2, 2), "layers_per_block": 1,
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    }  # fmt: skip
    parts = {"codec": PatchCodec(12, frames=1), "images": Thumbnails(), "prompts": HashedWords(16, 8)}
    torch.manual_seed(0)
    plain = UNetSpatioTemporalConditionModel(
        in_channels=24, out_channels=12, cross_attention_dim=48, **size
    ).eval()
    plain.save_pretrained(tmp_path / "unet")
    model = learned(
        SVD(str(tmp_path), known_observation=False, time="shared", training=Training(lora=TUNED), **parts)
    )
    write_adapters(model, tmp_path / "mine", str(tmp_path))
    adapted = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "mine" / "unet_lora")
    canvas, context = clip_of(model, 3, size=64), told(model, "", 64)
    noise, u = noise_for(canvas), torch.tensor([0.6])
    seen = torch.cat([noise, canvas.image], dim=1).transpose(1, 2)
    inputs = (seen, model.path.model_time(u), context.images, torch.tensor([[6.0, 127.0, 0.0]]))
    with torch.no_grad():
        ours = model.predict(noise, u, canvas, context).transpose(1, 2)
        before, theirs = (each(*inputs, return_dict=False)[0] for each in (plain, adapted))
    assert float((theirs - before).abs().max()) > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [2e-3, 2e-4])
def test_what_a_light_fine_tune_learned_on_half_precision_is_kept(tmp_path: Path, size: float):
    """Rounded to bfloat16 again, the sum would lose more than half of it."""
    folder = saved(wan_pipeline(experts=False), tmp_path / "base")
    options: dict[str, Any] = {
        "prompts": HashedWords(16, 512), "path": OurLevels.path, "time": "shared", "known_observation": False
    }  # fmt: skip
    model = learned(Wan(folder, training=Training(dtype="bfloat16", lora=TUNED), **options), size)
    weights = {n: p.clone() for n, p in model.denoiser.named_parameters()}
    said = write_backbone(model, tmp_path / "mine", folder)
    assert said == "low-rank adapters merged into transformer in float32"
    assert all(torch.equal(weights[n], p) for n, p in model.denoiser.named_parameters())  # untouched
    tensors = load_file(tmp_path / "mine" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}

    merged, base = (
        Wan(str(tmp_path / "mine"), **options),
        Wan(folder, training=Training(dtype="bfloat16"), **options),
    )
    canvas, context = clip_of(model, 9), told(model, PROMPT)
    noise, u = noise_for(canvas), torch.tensor([0.7])
    with torch.no_grad():  # all computed in float32, so that nothing but the weights differs
        wanted, found, rounded, began = (
            each.float().predict(noise, u, canvas, context)
            for each in (model, merged, copy.deepcopy(merged).bfloat16(), base)
        )
    change = float((wanted - began).norm())
    assert float((found - wanted).norm()) < 0.01 * change
    assert float((rounded - wanted).norm()) > 0.5 * change
