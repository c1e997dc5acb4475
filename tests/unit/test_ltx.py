"""LTX-Video: the pipeline from the prompt to the last latent; a causal encoder; what the decoder draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from text_twins import save_text
from transformers import AutoTokenizer, T5EncoderModel

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.diffusion.noise_paths import FlowMatching
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import Context, HashedWords
from backbones.ltx import LTX, LTX095, LTXVAE, LTXPrompts

SIZE, FRAMES = (64, 64), 17
VAE = {
    "latent_channels": 8, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
    "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
}  # fmt: skip
VAE_091 = {  # 0.9.1: told how noisy latents are, with noise of its own
    "latent_channels": 8, "block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5,
    "decoder_block_out_channels": (16, 32, 64), "decoder_layers_per_block": (1,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (True, True, True, False),
    "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True,
}  # fmt: skip
VAE_095 = {
    "latent_channels": 8, "block_out_channels": (8, 8, 16, 32, 64), "layers_per_block": (1,) * 5,
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4, "spatio_temporal_scaling": (True,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (16, 32, 64), "decoder_layers_per_block": (1,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 2}

RELEASES = [(LTX, LTXPipeline), (LTX, LTXImageToVideoPipeline), (LTX095, LTXConditionPipeline)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the released layout."""
    folder = tmp_path_factory.mktemp("ltx")
    torch.manual_seed(0)
    network = LTXVideoTransformer3DModel(in_channels=8, out_channels=8, caption_channels=16, **SMALL)
    network.save_pretrained(folder / "transformer")
    vae = AutoencoderKLLTXVideo(**VAE)
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    with torch.no_grad():  # the pipelines sample the posterior: make it as narrow as it gets
        vae.encoder.conv_out.conv.weight[-1] = 0
        vae.encoder.conv_out.conv.bias[-1] = -40
    vae.save_pretrained(folder / "vae")
    save_text(folder)
    return folder


def random_video() -> torch.Tensor:
    return torch.rand(1, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def canvas_of(model: LTX, name: str) -> Canvas:
    video = random_video()[None]
    cameras = Cameras(torch.eye(3)[None, None, None] * 60, torch.eye(4)[None, None, None])
    first, whole = model.encode(video[:, :, :, :1]), model.encode(video)
    mask = torch.ones(1, 1, dtype=torch.bool)
    return build_canvas(plan(name), model.spec, SIZE, cameras, mask, first, first, whole, whole)


def told(model: LTX, prompt: str) -> Context:
    return model.encode_context([prompt], torch.zeros(1, 1, 3, 1, *SIZE), torch.ones(1, 1, dtype=torch.bool))


def pipeline_of(folder: Path, kind: type) -> Any:
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTXVideo.from_pretrained(folder, subfolder="vae"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=LTXVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("kind", "released"), RELEASES)
def test_sampling_is_the_released_pipeline_at_step_0(
    folder: Path, kind: type[LTX], released: type, guidance: float
):
    """From prompt and picture to the last latent."""
    model = kind(str(folder), path=FlowMatching(), fps=24)
    model.prompts.dtype = torch.float32  # as the pipeline's
    canvas = canvas_of(model, "video_only")
    shown, g = {"image": random_video()[:, :, 0] / 2 + 0.5}, torch.Generator().manual_seed(1)
    if released is LTXPipeline:  # from text alone
        canvas, shown = replace(canvas, given=torch.zeros_like(canvas.given)), {}
    elif kind is LTX:
        torch.randn(canvas.clean[:, :, :1].shape, generator=g)  # the picture's posterior
    else:
        shown |= {"image_cond_noise_scale": 0.0, "timesteps": [1000.0, 2000 / 3, 1000 / 3]}
    noise = torch.randn(canvas.clean.shape, generator=g)
    theirs = pipeline_of(folder, released)(
        prompt="reach the red ball", negative_prompt="", height=SIZE[0], width=SIZE[1], num_frames=FRAMES,
        frame_rate=24, num_inference_steps=3, guidance_scale=guidance, output_type="latent",
        generator=torch.Generator().manual_seed(1), **shown,
    ).frames  # fmt: skip
    ours = model.sample(canvas, told(model, "reach the red ball"), noise, 3, guidance, told(model, ""))
    if kind is LTX:
        ours = LTXPipeline._pack_latents(ours)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_given_have_the_time_of_clean_latents(folder: Path):
    model = LTX(str(folder))
    canvas = canvas_of(model, "policy")  # one frame, then three
    times = model.network_time(torch.tensor([0.9]), canvas).unflatten(1, (4, 4))
    assert times[0, :, 0].tolist() == [0, 0, 900, 900]
    assert (times == times[:, :, :1]).all()


def test_padding_is_seen_by_the_encoder_and_hidden_from_the_denoiser(folder: Path):
    prompts = LTXPrompts(str(folder), dtype="float32")
    tokens = prompts.encode(["reach the red ball", ""], torch.device("cpu")).tokens
    assert tokens.shape == (2, 128, 16)
    assert tokens.ne(0).any(dim=2).sum(dim=1).tolist() == [5, 1]
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    text = tokenizer("reach the red ball", padding="max_length", max_length=128, return_tensors="pt")
    with torch.no_grad():
        padded = encoder(text.input_ids).last_hidden_state[:, :5]
        masked = encoder(text.input_ids, text.attention_mask).last_hidden_state[:, :5]
    torch.testing.assert_close(tokens[:1, :5], padded)
    assert not torch.allclose(padded, masked, atol=1e-3)


@pytest.mark.parametrize("architecture", [VAE, VAE_091, VAE_095], ids=["0.9.0", "0.9.1", "0.9.5"])
def test_the_encoder_is_causal_and_the_decoder_looks_ahead(architecture: dict[str, object]):
    torch.manual_seed(0)
    codec = LTXVAE(architecture=architecture)
    assert (codec.spatial_stride, codec.temporal_stride, codec.causal) == (32, 8, "encoder")
    video = random_video()
    latents = codec.encode(video)
    assert latents.shape == (1, 8, 3, 2, 2)
    for frames in (1, 9):  # a beginning encoded alone is the beginning of the whole
        beginning = codec.encode(video[:, :, :frames])
        torch.testing.assert_close(beginning, latents[:, :, : beginning.shape[2]], atol=1e-5, rtol=0)
    decoded, alone = codec.decode(latents * 10), codec.decode(latents[:, :, :2] * 10)
    assert decoded.shape == video.shape
    assert alone.shape[2] == 9
    assert float((alone - decoded[:, :, :9]).abs().max()) > 1e-3


def test_the_codec_is_the_released_one(folder: Path):
    codec = LTXVAE(str(folder))
    video = random_video()
    latents = codec.encode(video)
    raw = codec.vae.encode(video).latent_dist.mode()
    theirs = LTXImageToVideoPipeline._normalize_latents(raw, codec.vae.latents_mean, codec.vae.latents_std)
    torch.testing.assert_close(latents, theirs)
    decoded = codec.decode(latents)
    torch.testing.assert_close(decoded, codec.vae.decode(raw).sample.clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_decoder_that_draws_noise_repeats_itself():
    torch.manual_seed(0)
    codec = LTXVAE(architecture=VAE_091)
    for name, parameter in codec.vae.decoder.named_parameters():
        if "per_channel_scale" in name:
            parameter.data.fill_(0.5)
    latents = torch.randn(1, 8, 2, 2, 2)
    state = torch.random.get_rng_state()
    first, second = codec.decode(latents), codec.decode(latents)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    told = torch.zeros(1)
    free = [codec.vae.decode(latents, told).sample.clamp(-1, 1) for _ in range(2)]
    assert not torch.equal(free[0], free[1])


def test_other_networks_are_refused():
    parts = {"codec": PatchCodec(12), "prompts": HashedWords(16, 8)}
    with pytest.raises(ValueError, match=r"in patches of \(1, 2\).*needs 12 in and out"):
        LTX(architecture={**SMALL, "patch_size": 2}, **parts)
