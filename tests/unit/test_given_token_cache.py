"""Remembering what is given: one-way attention, its key/value cache, and decoding of beginnings."""

from dataclasses import replace

import pytest
import torch
from backbone_twins import SMALL_WAN, small_wan, traced
from torch._dynamo.utils import counters

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from backbones.conditions.prompts import Context
from backbones.wan import Wan
from backbones.weights.training_options import Training

SIZE, FRAMES, VIEWS, BATCH = (32, 32), 9, 2, 2


def inputs(model: Wan, name: str, missing: bool = False) -> tuple[Canvas, Context, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    video, action = torch.rand(2, BATCH, VIEWS, 3, FRAMES, *SIZE, generator=g) * 2 - 1
    mask = torch.ones(BATCH, VIEWS, dtype=torch.bool)
    mask[0, 1] = not missing
    cameras = Cameras(
        (torch.eye(3) * 30).expand(BATCH, VIEWS, 1, 3, 3), torch.eye(4).expand(BATCH, VIEWS, 1, 4, 4)
    )
    first, whole = ([model.encode(part[:, :, :, :n]) for part in (video, action)] for n in (1, FRAMES))
    canvas = build_canvas(plan(name), model.spec, SIZE, cameras, mask, *first, *whole)
    context = model.encode_context(["reach the red ball", "lift"], video[:, :, :, :1], mask)
    return canvas, context, torch.randn(canvas.clean.shape, generator=g)


@pytest.mark.parametrize("name", ["policy", "labeling", "joint"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_changes_nothing(name: str, guidance: float):
    plain, cached = (
        small_wan(given_attention="one_way"),
        small_wan(given_attention="one_way", cache_given=True),
    )
    canvas, context, noise = inputs(plain, name)
    null = plain.encode_context(
        ["", ""], torch.zeros(BATCH, VIEWS, 3, 1, *SIZE), torch.ones(BATCH, VIEWS) > 0
    )
    wanted, found = (model.sample(canvas, context, noise, 3, guidance, null) for model in (plain, cached))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    remembered = cached.prepare(canvas, context).memory
    given = canvas.given[0, 0, :, ::2, ::2].sum()
    assert len(remembered.past) == 3
    assert all(keys.shape[1] == given for keys, _ in remembered.past)


def test_given_tokens_do_not_see_generated_ones():
    model = small_wan(given_attention="one_way")
    canvas, context, noise = inputs(model, "joint")
    seen = []
    model.denoiser.blocks[-1].register_forward_hook(lambda _, __, tokens: seen.append(tokens))
    u = torch.tensor([0.9, 0.9])
    with torch.no_grad():
        for each in (noise, noise + 1):
            model.predict(torch.where(canvas.given, canvas.clean, each), u, canvas, context)
    given = canvas.given[0, 0, :, ::2, ::2].flatten()
    torch.testing.assert_close(seen[0][:, given], seen[1][:, given], atol=1e-6, rtol=0)
    assert not torch.allclose(seen[0][:, ~given], seen[1][:, ~given], atol=1e-2)


def test_rows_with_different_views_missing_are_not_cached_but_right():
    plain, cached = (
        small_wan(given_attention="one_way"),
        small_wan(given_attention="one_way", cache_given=True),
    )
    canvas, context, noise = inputs(plain, "policy", missing=True)
    assert cached.prepare(canvas, context).memory is None
    torch.testing.assert_close(
        cached.sample(canvas, context, noise, 2), plain.sample(canvas, context, noise, 2)
    )


def test_a_cache_that_would_not_be_exact_is_refused():
    with pytest.raises(ValueError, match="got full and per_token"):
        small_wan(cache_given=True)
    with pytest.raises(ValueError, match="got one_way and shared"):
        small_wan(cache_given=True, given_attention="one_way", time="shared")


def test_the_mask_reaches_training():
    full, one_way = small_wan(), small_wan(given_attention="one_way")
    canvas, context, noise = inputs(full, "joint")
    u = torch.tensor([0.9, 0.5])
    losses = [model.loss(canvas, context, u, noise) for model in (full, one_way)]
    assert not torch.allclose(*losses)
    losses[1].sum().backward()
    again = small_wan(given_attention="one_way", training=Training(gradient_checkpointing=True))
    again.train().loss(canvas, context, u, noise).sum().backward()
    for (name, one), other in zip(
        one_way.denoiser.named_parameters(), again.denoiser.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 9])
def test_beginnings_decode_alone(frames: int):
    model = small_wan()
    latents = torch.randn(1, VIEWS, 12, 3, 4, 4)
    assert torch.equal(model.decode(latents, frames), model.decode(latents)[:, :, :, :frames])
    seen = []
    codec = model.codec
    whole = codec.decode
    codec.decode = lambda parts: seen.append(parts.shape[2]) or whole(parts)
    model.decode(latents, frames)
    assert seen == [1 + -(-(frames - 1) // 4)]


def test_every_block_can_be_conditioned():
    plain, told = small_wan(), small_wan(block_rank=4)
    told.load_state_dict({**told.state_dict(), **plain.state_dict()})
    with torch.no_grad():
        for up in told.denoiser.block_conditions.up:
            up.weight.zero_()
    canvas, context, noise = inputs(plain, "joint")
    u = torch.tensor([0.9, 0.5])
    assert torch.equal(told.predict(noise, u, canvas, context), plain.predict(noise, u, canvas, context))
    told.loss(canvas, context, u, noise).sum().backward()
    assert all(up.weight.grad.abs().max() > 0 for up in told.denoiser.block_conditions.up)
    cached = small_wan(block_rank=4, given_attention="one_way", cache_given=True)
    slow = small_wan(block_rank=4, given_attention="one_way")
    torch.testing.assert_close(
        cached.sample(canvas, context, noise, 2), slow.sample(canvas, context, noise, 2), atol=2e-5, rtol=1e-5
    )


def test_memory_does_not_outlive_a_sample():
    model = small_wan(given_attention="one_way", cache_given=True)
    canvas, context, noise = inputs(model, "policy")
    model.sample(canvas, context, noise, 2)
    assert context.memory is None
    other = replace(canvas, clean=canvas.clean + 1)
    fresh = small_wan(given_attention="one_way", cache_given=True).sample(other, context, noise, 2)
    assert torch.equal(model.sample(other, context, noise, 2), fresh)


@pytest.mark.filterwarnings("ignore:.*non-leaf Tensor.*", "ignore:The .grad attribute of a Tensor")
def test_compiled_blocks_share_their_graphs_whatever_their_number(monkeypatch: pytest.MonkeyPatch):
    """A block that guarded on its place among the others would be compiled twelve times, then given up."""
    traced(monkeypatch, fullgraph=True)
    monkeypatch.setitem(SMALL_WAN, "num_layers", 12)
    options = {"given_attention": "one_way", "cache_given": True}
    plain, compiled = small_wan(**options), small_wan(**options, training=Training(compile_blocks=True))
    canvas, context, noise = inputs(plain, "policy")
    torch._dynamo.reset()
    counters.clear()
    found = compiled.sample(canvas, context, noise, 2)
    torch.testing.assert_close(found, plain.sample(canvas, context, noise, 2), atol=2e-5, rtol=1e-5)

    assert counters["stats"]["unique_graphs"] == 2  # what remembers, and what is reminded
    assert not counters["graph_break"]
