"""Mochi 1: the pipeline from the prompt to the last latent; a causal video autoencoder; the step grid."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLMochi,
    FlowMatchEulerDiscreteScheduler,
    MochiPipeline,
    MochiTransformer3DModel,
)
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from text_twins import save_text
from transformers import AutoTokenizer, T5EncoderModel

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import Context, HashedWords
from backbones.mochi import Mochi, MochiFlow, MochiVAE

SIZE, FRAMES, PROMPT = (32, 32), 13, "reach the red ball"
VAE = {
    "encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4,
    "layers_per_block": (1,) * 5, "scaling_factor": 0.8,
}  # fmt: skip
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "pooled_projection_dim": 16}

# Of diffusers' own transformer, which asks autocast on the CPU for float32.
PLAIN = pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the released layout."""
    folder = tmp_path_factory.mktemp("mochi")
    torch.manual_seed(0)
    network = MochiTransformer3DModel(text_embed_dim=16, **SMALL)
    torch.nn.init.normal_(network.pos_frequencies, std=0.1)
    network.save_pretrained(folder / "transformer")
    AutoencoderKLMochi(**VAE).save_pretrained(folder / "vae")
    save_text(folder, words=PROMPT.split())
    return folder


def released(folder: Path) -> MochiPipeline:
    """The released pipeline, which zeroes empty prompts as the model was trained."""
    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=AutoencoderKLMochi.from_pretrained(folder, subfolder="vae"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=MochiTransformer3DModel.from_pretrained(folder, subfolder="transformer"),
        force_zeros_for_empty_prompt=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(folder: Path) -> Mochi:
    model = Mochi(str(folder))
    model.prompts.dtype = torch.float32  # as the pipeline's
    return model


def random_video() -> torch.Tensor:
    return torch.rand(1, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def canvas_of(model: Mochi) -> Canvas:
    """One clip of which nothing is given: the released model makes videos of texts alone."""
    cameras = Cameras(torch.eye(3)[None, None, None] * 30, torch.eye(4)[None, None, None])
    latents, mask = model.encode(random_video()[None]), torch.ones(1, 1, dtype=torch.bool)
    first = latents[:, :, :, :1]
    canvas = build_canvas(plan("video_only"), model.spec, SIZE, cameras, mask, first, first, latents, latents)
    return replace(canvas, given=torch.zeros_like(canvas.given))


def told(model: Mochi, prompt: str) -> Context:
    return model.encode_context([prompt], torch.zeros(1, 1, 3, 1, *SIZE), torch.ones(1, 1, dtype=torch.bool))


@PLAIN
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_sampling_is_the_released_pipeline_at_step_0(folder: Path, guidance: float):
    """From the prompt to the last latent, with the empty prompt where there is guidance."""
    model = ours(folder)
    canvas = canvas_of(model)
    noise = torch.randn(canvas.clean.shape, generator=torch.Generator().manual_seed(1))
    theirs = released(folder)(
        PROMPT, height=SIZE[0], width=SIZE[1], num_frames=FRAMES, num_inference_steps=5, latents=noise,
        guidance_scale=guidance, output_type="latent",
    ).frames  # fmt: skip
    found = model.sample(canvas, told(model, PROMPT), noise, 5, guidance, told(model, ""))
    assert float((theirs - noise).abs().max()) > 0.1
    torch.testing.assert_close(found, theirs, atol=2e-5, rtol=0)


@PLAIN
def test_one_forward_is_the_released_one_bit_for_bit(folder: Path):
    model, pipeline = ours(folder), released(folder)
    canvas, context = canvas_of(model), told(model, PROMPT)
    text, mask, _, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    own = text * mask[:, :, None]
    torch.testing.assert_close(context.tokens, own, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        found = model.predict(canvas.clean, torch.tensor([0.25]), canvas, replace(context, tokens=own))
        theirs = pipeline.transformer(canvas.clean, text, torch.tensor([750.0]), mask, return_dict=False)[0]
    assert torch.equal(found, theirs)


def test_the_network_keeps_every_released_weight(folder: Path):
    """Also those that lead nowhere and are no parameters here."""
    model, plain = Mochi(str(folder)), MochiTransformer3DModel.from_pretrained(folder / "transformer")
    for name in ("add_q_proj", "norm_added_q"):
        kept = model.denoiser.transformer_blocks[-1].attn1.get_submodule(name).weight
        assert torch.equal(kept, plain.get_parameter(f"transformer_blocks.1.attn1.{name}.weight"))
    assert model.released_names == set(plain.state_dict())
    assert len(list(model.denoiser.parameters())) == len(list(plain.parameters())) - 2 + 1  # the conditions'


def test_the_autoencoder_squeezes_six_frames_into_one():
    torch.manual_seed(0)
    codec = MochiVAE(architecture=VAE)
    assert (codec.spatial_stride, codec.temporal_stride, codec.causal) == (8, 6, "exact")
    video = random_video()
    latents = codec.encode(video)
    assert latents.shape == (1, 12, 3, 4, 4)
    assert codec.decode(latents).shape == video.shape


def test_the_codec_is_the_released_one(folder: Path):
    pipeline, codec = released(folder), MochiVAE(str(folder))
    latents = codec.encode(random_video())
    with torch.no_grad():
        raw = codec.vae.encode(random_video()).latent_dist.mode()
        mean, std = (
            torch.tensor(part).view(1, 12, 1, 1, 1)
            for part in (codec.vae.config.latents_mean, codec.vae.config.latents_std)
        )
        torch.testing.assert_close(latents * std / 0.8 + mean, raw)
        plain = pipeline.vae.decode(raw).sample
    torch.testing.assert_close(codec.decode(latents), plain.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [2, 7, 64])
def test_the_grid_is_the_released_one(steps: int):
    grid = MochiFlow().grid(steps)
    expected = torch.tensor([*linear_quadratic_schedule(steps, 0.025), 0.0])
    torch.testing.assert_close(grid, expected, atol=1e-6, rtol=0)
    assert (float(grid[0]), float(grid[-1])) == (1, 0)
    assert (grid.diff() < 0).all()


def test_grids_of_one_step_and_of_equal_steps():
    assert MochiFlow().grid(1).tolist() == [1, 0]
    assert MochiFlow(threshold=0.5).grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        MochiFlow().grid(0)
    with pytest.raises(ValueError, match=r"threshold 0\.6 must lie in \(0, 0\.5\]"):
        MochiFlow(threshold=0.6)


def test_the_path_inverts_its_target():
    path, u = MochiFlow(), torch.rand(4, 1)
    clean, noise = torch.randn(2, 4, 3)
    found = path.invert(path.target(clean, noise, u), path.add_noise(clean, noise, u), u)
    torch.testing.assert_close(found, (clean, noise), atol=1e-6, rtol=1e-5)
    assert path.model_time(torch.tensor([1.0, 0.25])).tolist() == [0, 750]


def test_other_networks_are_refused():
    parts = {"codec": PatchCodec(12), "prompts": HashedWords(16, 8)}
    made = Mochi(architecture=SMALL, **parts)
    assert made.spec.channels == 12
    with pytest.raises(ValueError, match=r"takes 16 channels and makes 12.*needs 12 in and out"):
        made.latent_spec({**made.denoiser.config, "in_channels": 16})
    made = Mochi(architecture=SMALL, codec=MochiVAE(architecture=VAE), prompts=parts["prompts"])
    with pytest.raises(ValueError, match=r"41 frames does not fit this backbone: it takes 6k \+ 1 frames"):
        made.spec.latent_frames(41)
