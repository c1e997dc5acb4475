"""Wan 2.2 A14B: two networks that share the noise levels, used as their pipelines use them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from released_twins import (
    PROMPT,
    OurLevels,
    ShownWan,
    clip_of,
    cogvideox_network,
    cogvideox_vae,
    noise_for,
    saved,
    shot,
    told,
    wan_network,
    wan_vae,
)
from torch.distributed.device_mesh import DeviceMesh

from ai_wam.cli.export_checkpoint import write_backbone
from ai_wam.diffusion.noise_paths import TimeSampling
from backbones.cogvideox import CogVideoX
from backbones.conditions.prompts import HashedWords
from backbones.networks.two_experts import Experts
from backbones.wan import Wan
from backbones.weights.lora import LoRA
from backbones.weights.sharded_loading import deferred_weights
from backbones.weights.training_options import Training

BOUNDARY = 0.875
PARTS: dict[str, Any] = {"time": "shared", "known_observation": False}


def pipeline_of(shown: bool = False, boundary: float | None = BOUNDARY) -> Any:
    kind = WanImageToVideoPipeline if shown else WanPipeline
    channels = {"in_channels": 36} if shown else {}
    pipeline = kind(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=OurLevels(),
        transformer=wan_network(0, **channels), transformer_2=wan_network(5, **channels),
        boundary_ratio=boundary,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(pipeline_of(), tmp_path_factory.mktemp("a14b"))


def load(folder: str, kind: type[Wan] = Wan, **options: Any) -> Wan:
    return kind(folder, prompts=HashedWords(16, 512), path=OurLevels.path, **{**PARTS, **options})


@pytest.mark.parametrize(("guidance", "low"), [(1.0, None), (4.0, None), (4.0, 3.0)])
@pytest.mark.parametrize("shown", [False, True], ids=["T2V", "I2V"])
def test_sampling_is_the_released_pipeline(tmp_path: Path, shown: bool, guidance: float, low: float | None):
    pipeline = pipeline_of(shown)
    model = load(saved(pipeline, tmp_path), ShownWan if shown else Wan, low_guidance=low)
    canvas = clip_of(model, 9)
    context, null, noise = told(model, PROMPT), told(model, ""), noise_for(canvas)
    steps, levels = 8, OurLevels.path.grid(8)[:-1]
    assert 0 < int((levels >= BOUNDARY).sum()) < steps
    inputs = {"image": shot()} if shown else {}
    theirs = pipeline(
        prompt_embeds=context.tokens, negative_prompt_embeds=null.tokens, guidance_scale=guidance,
        guidance_scale_2=low, height=32, width=32, num_frames=9, num_inference_steps=steps,
        latents=noise.clone(), output_type="latent", **inputs,
    ).frames  # fmt: skip
    ours = model.sample(canvas, context, noise, steps, guidance, null)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    alone = Wan._predict(model, model.denoiser.high, noise, torch.tensor([0.5]), canvas, context)
    both = model.predict(noise, torch.tensor([0.5]), canvas, context)
    assert not torch.allclose(alone, both, atol=1e-3)


def test_a_step_trains_each_row_by_its_expert(folder: str):
    model = load(folder, training=Training(gradient_checkpointing=True)).train()
    assert len(model.fsdp_units()) == 4
    canvas, context = (rows_of(part) for part in (clip_of(model, 9), told(model, PROMPT)))
    noise, u = noise_for(canvas), torch.tensor([0.3, 0.95])
    loss = model.loss(canvas, context, u, noise)
    for row, network in enumerate((model.denoiser.low, model.denoiser.high)):
        one = load(folder)
        one.denoiser = Experts(network, network, BOUNDARY)
        torch.testing.assert_close(loss[row], one.loss(canvas, context, u, noise)[row])
    loss[0].backward()
    assert all((p.grad == 0).all() for p in model.denoiser.high.parameters() if p.grad is not None)
    assert any((p.grad != 0).any() for p in model.denoiser.low.parameters() if p.grad is not None)
    model.zero_grad()
    model.loss(canvas, context, torch.tensor([0.9, 0.95]), noise).sum().backward()  # none for low noise
    assert all(p.grad is not None for p in model.denoiser.parameters())


def rows_of(value: Any) -> Any:
    """Two equal rows."""
    tensors = {name: torch.cat([p, p]) for name, p in vars(value).items() if isinstance(p, torch.Tensor)}
    return replace(value, **tensors)


@pytest.mark.parametrize(("expert", "seed", "bounds"), [("high", 0, (0.875, 1)), ("low", 5, (0, 0.875))])
def test_one_expert_learns_its_share_and_cannot_sample(
    folder: str, expert: Any, seed: int, bounds: tuple[float, float]
):
    model = load(folder, expert=expert)
    network = wan_network(seed)
    assert torch.equal(model.denoiser.blocks[0].ffn.net[2].weight, network.blocks[0].ffn.net[2].weight)
    with deferred_weights():
        waiting = load(folder, expert=expert)
    waiting.materialize()
    assert torch.equal(waiting.denoiser.proj_out.weight, network.proj_out.weight)
    u = model.path.draw(4000, torch.Generator().manual_seed(0))
    assert bounds[0] <= float(u.min()) <= float(u.max()) <= bounds[1]
    # As often as among the levels of both.
    every = load(folder).path.draw(100_000, torch.Generator().manual_seed(1))
    within = every[(every >= bounds[0]) & (every <= bounds[1])]
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(u.quantile(quantiles), within.quantile(quantiles), atol=0.02, rtol=0)
    canvas, context = clip_of(model, 9), told(model, PROMPT)
    assert model.loss(canvas, context, u[:1], noise_for(canvas)).item() > 0
    with pytest.raises(ValueError, match=rf"expert: {expert} alone cannot sample.*limit_val_batches 0"):
        model.sample(canvas, context, noise_for(canvas), 2)


def test_levels_at_pure_noise_are_the_high_experts():
    high, low = (
        TimeSampling(pure_noise=0.3, within=within).draw(2000, torch.Generator().manual_seed(0))
        for within in ((0.875, 1.0), (0.0, 0.875))
    )
    assert float((high == 1).float().mean()) == pytest.approx(0.3, abs=0.04)
    assert not (low == 1).any()


def test_low_rank_adapters_checkpoints_and_exports_have_both(folder: str, tmp_path: Path):
    model = load(folder, training=Training(lora=LoRA(rank=2)))
    with torch.no_grad():
        for name, parameter in model.denoiser.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    state = model.state_dict()
    assert {name.split(".")[1] for name in state} == {"high", "low"}
    again = load(folder, training=Training(lora=LoRA(rank=2)))
    again.load_state_dict(state)
    canvas, context = clip_of(model, 9), told(model, PROMPT)
    sampled = [each.sample(canvas, context, noise_for(canvas), 8) for each in (model, again)]
    assert torch.equal(*sampled)
    write_backbone(model, tmp_path / "mine", folder)
    assert sorted(part.name for part in (tmp_path / "mine").iterdir()) == ["transformer", "transformer_2"]
    WanTransformer3DModel.from_pretrained(tmp_path / "mine", subfolder="transformer_2")
    exported = load(str(tmp_path / "mine"))
    assert exported.boundary == BOUNDARY  # as it was trained, though no model_index.json says so
    found = exported.sample(canvas, context, noise_for(canvas), 8)
    torch.testing.assert_close(found, sampled[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"trained with boundary: 0\.875, not 0\.5"):
        load(str(tmp_path / "mine"), boundary=0.5)


def test_each_expert_remembers_what_is_given(folder: str):
    options: dict[str, Any] = {"time": "per_token", "given_attention": "one_way"}
    plain, cached = load(folder, **options), load(folder, cache_given=True, **options)
    canvas, context = clip_of(plain, 9, given=True), told(plain, PROMPT)
    memory = cached.prepare(canvas, context).memory
    assert memory.keys() == {"transformer", "transformer_2"}
    torch.testing.assert_close(
        cached.sample(canvas, context, noise_for(canvas), 8),
        plain.sample(canvas, context, noise_for(canvas), 8),
    )


def test_two_new_networks_and_what_is_refused(folder: str, tmp_path: Path):
    size = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "freq_dim": 16,
        "num_layers": 1,
    }
    parts = {"codec": load(folder).codec, "prompts": HashedWords(16, 8)}
    made = Wan(architecture=size, boundary=0.5, **parts)
    assert isinstance(made.denoiser, Experts)
    assert len(made.fsdp_units()) == 2
    with pytest.raises(ValueError, match="two experts are not sharded together"):
        made.shard(object.__new__(DeviceMesh))  # of no process: refused before it is looked at
    with pytest.raises(ValueError, match="expert: low needs a release of two networks"):
        Wan(architecture=size, expert="low", **parts)
    with pytest.raises(ValueError, match=r"boundary 2\.0 must lie between 0 and 1"):
        Wan(architecture=size, boundary=2.0, **parts)
    with pytest.raises(ValueError, match=r"low_guidance 3\.0 needs expert: both, got high"):
        load(folder, expert="high", low_guidance=3.0)
    unnamed = saved(pipeline_of(boundary=None), tmp_path / "unnamed")
    with pytest.raises(ValueError, match=r"two networks.*names no boundary_ratio; set boundary"):
        load(unnamed)
    assert load(unnamed, boundary=0.9).boundary == 0.9
    other = pipeline_of()
    other.register_modules(transformer_2=wan_network(5, ffn_dim=64))
    with pytest.raises(ValueError, match="are not of one size: ffn_dim: 32 and 64"):
        load(saved(other, tmp_path / "other"))


def test_parts_that_are_not_used_are_named(folder: str, tmp_path: Path):
    for part in Path(folder).iterdir():
        if part.name != "model_index.json":
            (tmp_path / part.name).symlink_to(part)
    index = json.loads((Path(folder) / "model_index.json").read_text())
    parts = {
        "image_encoder": ["transformers", "CLIPVisionModel"], "text_encoder_2": ["transformers", "T5"],
        "safety_checker": ["x", "Checker"], "image_processor": ["transformers", "CLIPImageProcessor"],
        "latent_upsampler": [None, None],
    }  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps({**index, **parts}))
    with pytest.raises(ValueError, match=r"not use.*: image_encoder \(CLIP.*\), text_encoder_2 \(T5\)"):
        load(str(tmp_path))
    names = r"transformer_2 \(WanTransformer3DModel\)"
    (tmp_path / "transformer").unlink()
    cog = tmp_path / "transformer"
    cogvideox_network().save_pretrained(cog)
    (tmp_path / "vae").unlink()
    cogvideox_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"CogVideoX does not use.*{names}"):
        CogVideoX(str(tmp_path), prompts=HashedWords(16, 226))
