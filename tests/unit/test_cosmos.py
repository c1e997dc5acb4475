"""Cosmos-Predict2: preconditioning as flow matching; the pipeline from the prompt to the last latent."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos2VideoToWorldPipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from text_twins import save_text
from transformers import AutoTokenizer, T5EncoderModel

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import HashedWords
from backbones.conditions.t5 import T5Prompts
from backbones.cosmos import Cosmos, CosmosFlow

SIZE, FRAMES = (32, 32), 9
SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "adaln_lora_dim": 4,
    "rope_scale": (1.0, 3.0, 3.0), "extra_pos_embed_type": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the released layout."""
    folder = tmp_path_factory.mktemp("cosmos")
    torch.manual_seed(0)
    network = CosmosTransformer3DModel(in_channels=17, out_channels=16, text_embed_dim=16, **SMALL)
    network.save_pretrained(folder / "transformer")
    AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).save_pretrained(folder / "vae")
    save_text(folder)
    return folder


def canvas_of(model: Cosmos, name: str, image: torch.Tensor | None = None) -> Canvas:
    video = torch.rand(1, 1, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if image is not None:
        video[0, 0, :, 0] = image * 2 - 1
    cameras = Cameras(torch.eye(3)[None, None, None] * 30, torch.eye(4)[None, None, None])
    first, whole = model.encode(video[:, :, :, :1]), model.encode(video)
    mask = torch.ones(1, 1, dtype=torch.bool)
    return build_canvas(plan(name), model.spec, SIZE, cameras, mask, first, first, whole, whole)


class Harmless(torch.nn.Module):
    """Stands for the guardrail, which is a package of its own."""

    device = torch.device("cpu")

    def check_text_safety(self, _: str) -> bool:
        return True


def run_pipeline(folder: Path, steps: int, **inputs: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The released pipeline's noise scales before, and latents after every step."""
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():  # the pipeline samples the posterior: make it as narrow as it gets
        vae.quant_conv.weight[16:] = 0
        vae.quant_conv.bias[16:] = -40
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=CosmosTransformer3DModel.from_pretrained(folder, subfolder="transformer"),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=Harmless(),
    )
    pipeline.set_progress_bar_config(disable=True)
    found: list[torch.Tensor] = []

    def keep(_: object, __: int, ___: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found.append(tensors["latents"])
        return {}

    pipeline(
        height=SIZE[0], width=SIZE[1], num_frames=FRAMES, num_inference_steps=steps, output_type="latent",
        callback_on_step_end=keep, **inputs,
    )  # fmt: skip
    return pipeline.scheduler.sigmas[:steps], torch.stack(found)


@dataclass(frozen=True)
class TheirLevels(CosmosFlow):
    """The pipeline's noise levels, which end at sigma_min."""

    levels: tuple[float, ...] = ()

    def grid(self, steps: int) -> torch.Tensor:
        return torch.tensor(self.levels[: steps + 1])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of the pipeline
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sampling_is_the_released_pipeline_at_step_0(folder: Path, guidance: float):
    """From prompt and picture to the last latent; their x = x0 + s eps is our z / (1 - u).

    Their guidance of g is g + 1 here, and off up to 1. Their last step changes nothing; ours leads to clean.
    """
    prompts = T5Prompts(str(folder), encoder="T5EncoderModel", length=512, padding="zeros", dtype="float32")
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    sigma, theirs = run_pipeline(
        folder, 5, image=image[None], prompt="reach the red ball", negative_prompt="", latents=noise, fps=10,
        guidance_scale=guidance,
    )  # fmt: skip
    levels = sigma / (1 + sigma)
    torch.testing.assert_close(CosmosFlow().grid(4)[1:-1], levels[1:-1], atol=1e-5, rtol=1e-4)
    assert torch.equal(theirs[3], theirs[4])

    model = Cosmos(str(folder), prompts=prompts, fps=10, path=TheirLevels(levels=tuple(levels.tolist())))
    canvas, now = canvas_of(model, "video_only", image), torch.zeros(1, 1, 3, 1, *SIZE)
    context, null = (
        model.encode_context([prompt], now, torch.ones(1, 1, dtype=torch.bool))
        for prompt in ("reach the red ball", "")
    )
    scale = guidance + 1 if guidance > 1 else 1.0
    found = model.sample(canvas, context, noise * levels[0], 4, scale, null) / (1 - levels[4])
    generated = ~canvas.given.expand_as(noise)
    torch.testing.assert_close(found[generated], theirs[4][generated], atol=1e-5, rtol=1e-5)


def test_the_path_is_the_preconditioning(folder: Path):
    """The target makes c_skip x + c_out F the clean latents; training draws log-normal noise scales."""
    path = CosmosFlow()
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1000, generator=g, dtype=torch.float64)
    sigma = torch.rand(1000, generator=g, dtype=torch.float64) * 80
    u = sigma / (1 + sigma)
    x = clean + sigma * noise
    torch.testing.assert_close(path.add_noise(clean, noise, u), x / (1 + sigma))
    prediction = path.target(clean, noise, u)
    torch.testing.assert_close((1 - u) * x - u * prediction, clean)
    torch.testing.assert_close(path.invert(prediction, x / (1 + sigma), u), (clean, noise))
    drawn = Cosmos(str(folder)).path.draw(20_000, g)
    log = (drawn[drawn < 1] / (1 - drawn[drawn < 1])).log()
    assert float(log.mean()) == pytest.approx(math.log(4), abs=0.03)
    assert float(log.std()) == pytest.approx(1.2, abs=0.03)


def test_the_grid_runs_from_pure_noise_to_clean():
    path = CosmosFlow()
    assert path.grid(1).tolist() == [1, 0]
    grid = path.grid(35)
    assert (float(grid[0]), float(grid[-1])) == (1, 0)
    assert (grid.diff() < 0).all()
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        path.grid(0)


def test_given_frames_have_the_time_of_clean_latents(folder: Path):
    model = Cosmos(str(folder))
    canvas = canvas_of(model, "policy")  # one frame, then three
    times = model.network_time(torch.tensor([0.9]), canvas)
    torch.testing.assert_close(times, torch.tensor([[0.0001 / 1.0001] * 2 + [0.9] * 2]))


def test_one_time_for_all_is_the_same_as_equal_times(folder: Path):
    model = Cosmos(str(folder), time="shared")
    latents, text = torch.randn(1, 18 + model.spec.channels + 8, 3, 4, 4), torch.randn(1, 5, 16)
    with torch.no_grad():
        shared = model.denoiser(latents, torch.tensor([0.9]), text, 16)
        each = model.denoiser(latents, torch.full((1, 3), 0.9), text, 16)
    torch.testing.assert_close(shared, each, atol=1e-6, rtol=1e-5)


def test_other_networks_are_refused():
    parts = {"codec": PatchCodec(12), "prompts": HashedWords(16, 8)}
    with pytest.raises(ValueError, match=r"has \{'extra_pos_embed_type': 'learnable'\} and tokens of 1"):
        Cosmos(architecture={**SMALL, "extra_pos_embed_type": "learnable"}, **parts)
    with pytest.raises(ValueError, match=r"tokens of 2; take a Cosmos-Predict2 Video2World release"):
        Cosmos(architecture={**SMALL, "patch_size": (2, 2, 2)}, **parts)


def test_a_text_to_image_network_is_refused(folder: Path, tmp_path: Path):
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(folder / part)
    network = CosmosTransformer3DModel(in_channels=16, out_channels=16, text_embed_dim=16, **SMALL)
    network.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match=r"takes 16 channels and makes 16.*needs 17 \(Video2World\) in"):
        Cosmos(str(tmp_path))
