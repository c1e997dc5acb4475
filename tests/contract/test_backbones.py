"""Every backbone with a tiny YAML keeps the contract; a new one is found by its file name."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from backbone_twins import BATCH, FRAMES, SIZE, TINY, VIEWS, awaken, build, canvas_of, context_of, inputs

from ai_wam.canvas import joined
from ai_wam.diffusion.solvers import Solver
from backbones.base import VideoBackbone


def test_there_are_tiny_twins():
    assert {"wan-tiny", "cogvideox-tiny"} <= {file.stem for file in TINY}


def test_codec_gives_what_the_spec_says(backbone: VideoBackbone):
    video = torch.rand(1, VIEWS, 3, FRAMES, *SIZE) * 2 - 1
    latents = backbone.encode(video)
    spec = backbone.spec
    assert latents.shape == (1, VIEWS, spec.channels, spec.latent_frames(FRAMES), *spec.grid(SIZE))
    assert backbone.decode(latents).shape == video.shape
    with pytest.raises(ValueError, match=r"do(es)? not fit this backbone"):
        spec.latent_frames(FRAMES + 1) if spec.frame_multiple > 1 else spec.grid((63, 64))


def test_codec_is_as_causal_as_it_says(backbone: VideoBackbone):
    video = torch.rand(1, VIEWS, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode(video)
    if backbone.codec.causal != "blocks":
        torch.testing.assert_close(backbone.encode(video[:, :, :, :1]), latents[:, :, :, :1])
    whole = backbone.decode(latents)
    for frames in (1, 2, FRAMES - 1, FRAMES):
        torch.testing.assert_close(backbone.decode(latents, frames), whole[:, :, :, :frames])


@pytest.mark.parametrize("name", ["joint", "policy", "video_only"])
def test_conditions_change_nothing_at_step_0(backbone: VideoBackbone, name: str):
    canvas = canvas_of(backbone, name)
    context, noise = inputs(backbone, canvas)
    u = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        plain = backbone.predict(noise, u, canvas, context)
        blank = canvas.to("cpu")
        object.__setattr__(blank, "condition", torch.randn_like(canvas.condition))
        assert torch.equal(backbone.predict(noise, u, blank, context), plain)


@pytest.mark.parametrize("name", ["joint", "policy", "labeling"])
def test_every_parameter_learns(backbone: VideoBackbone, name: str):
    awaken(backbone).zero_grad()
    canvas = canvas_of(backbone, name)
    context, noise = inputs(backbone, canvas)
    loss = backbone.loss(canvas, context, torch.tensor([0.7, 0.3]), noise)
    assert loss.shape == (2,)
    loss.sum().backward()
    for parameter_name, parameter in backbone.denoiser.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    assert not any(p.requires_grad for p in [*backbone.codec.parameters(), *backbone.prompts.parameters()])


@pytest.mark.parametrize(
    "name", ["joint", "policy", "action_conditioned", "labeling", "annotation", "video_only", "cross_view"]
)
def test_sampling_keeps_what_is_given_and_repeats_itself(backbone: VideoBackbone, name: str):
    awaken(backbone)
    canvas = canvas_of(backbone, name)
    context, noise = inputs(backbone, canvas)
    null = context_of(backbone, ["", ""])
    ways: list[dict[str, Any]] = [{"solver": solver} for solver in get_args(Solver)]
    for how in [*ways, {"guidance": 3.0, "null_context": null}]:
        sample = backbone.sample(canvas, context, noise, 2, **how)
        given = canvas.given.expand_as(sample)
        assert torch.equal(sample[given], canvas.clean[given]), how
        assert sample.isfinite().all(), how
    assert torch.equal(sample, backbone.sample(canvas, context, noise, 2, **how))


@pytest.mark.parametrize("name", ["policy", "joint"])
def test_the_future_reaches_the_network_through_noise_only(backbone: VideoBackbone, name: str):
    """Two clips that begin alike give one condition, and at pure noise one prediction."""
    awaken(backbone)
    one, other = (canvas_of(backbone, name, future=future) for future in (0, 1))
    assert not torch.equal(one.clean, other.clean)
    assert torch.equal(one.condition, other.condition)
    assert torch.equal(
        one.clean[one.given.expand_as(one.clean)], other.clean[other.given.expand_as(other.clean)]
    )
    context, noise = inputs(backbone, one)
    u = torch.ones(len(noise))
    with torch.no_grad():
        first, second = (
            backbone.predict(torch.where(canvas.given, canvas.clean, noise), u, canvas, context)
            for canvas in (one, other)
        )
    assert torch.equal(first, second)
    a, _ = backbone.path.coefficients(u)
    assert float(a.max()) <= 1 / 700  # EDM's largest noise scale; exactly 0 elsewhere


def test_guidance_at_scale_1_is_off_and_pushes_otherwise(backbone: VideoBackbone):
    awaken(backbone)
    canvas = canvas_of(backbone, "policy")
    context, noise = inputs(backbone, canvas)
    null = context_of(backbone, ["", ""])
    plain = backbone.sample(canvas, context, noise, 2)
    guided = backbone.sample(canvas, context, noise, 2, guidance=3.0, null_context=null)
    assert not torch.allclose(plain[0], guided[0])
    torch.testing.assert_close(plain[1], guided[1], atol=2e-3, rtol=1e-3)  # an empty prompt is its own null
    with pytest.raises(ValueError, match=r"guidance 3\.0 needs null_context"):
        backbone.sample(canvas, context, noise, 2, guidance=3.0)


def test_rows_do_not_see_one_another(backbone: VideoBackbone):
    awaken(backbone)
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    both = backbone.sample(canvas, context, noise, 1)
    changed = noise.clone()
    changed[1] += 1
    again = backbone.sample(canvas, context, changed, 1)
    torch.testing.assert_close(again[0], both[0], atol=1e-5, rtol=1e-5)


def test_plans_with_equal_lengths_share_a_forward(backbone: VideoBackbone):
    canvases = [canvas_of(backbone, name) for name in ("joint", "labeling", "action_conditioned")]
    context, noise = inputs(backbone, canvases[0])
    noise, u = torch.cat([noise, noise + 1, noise - 1]), torch.linspace(0.2, 1, 3 * BATCH)
    told = context.joined(context).joined(context)
    with torch.no_grad():
        found = backbone.loss(joined(canvases), told, u, noise)
        parts = zip(canvases, u.split(BATCH), noise.split(BATCH), strict=True)
        expected = torch.cat([backbone.loss(canvas, context, *part) for canvas, *part in parts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert len(set(found.tolist())) == 3 * BATCH


@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_the_change_can_be_predicted_where_no_picture_is_shown(file: Path):
    plain = build(file)
    if plain.takes_image(plain.denoiser.config):
        with pytest.raises(ValueError, match="has the first frame as a condition natively"):
            build(file, "prediction=change")
        return
    backbone = build(file, "prediction=change")
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    with pytest.raises(ValueError, match="hold"):
        backbone.sample(canvas, context, noise, 1)
    canvas = backbone.hold(canvas)
    assert canvas.held is not None
    assert canvas.held.shape == canvas.clean.shape
    found = backbone.sample(canvas, context, noise, 1, 2.0, context)
    assert torch.equal(found[canvas.given.expand_as(found)], canvas.clean[canvas.given.expand_as(found)])


@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_known_actions_are_a_condition_that_gives_no_future_away(file: Path):
    backbone = awaken(build(file, "known_action=true"))
    for name, known in (("policy", False), ("joint", False), ("action_conditioned", True)):
        one, other = (canvas_of(backbone, name, future=future) for future in (0, 1))
        assert torch.equal(one.condition, other.condition) != known
    context, noise = inputs(backbone, one)
    first, second = (backbone.sample(canvas, context, noise, 1) for canvas in (one, other))
    assert torch.equal(first[one.given.expand_as(first)], one.clean[one.given.expand_as(first)])
    assert not torch.equal(first, second)
