"""Every backbone's weights: saved, adapted, read later, copied, and cheaper in memory."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from backbone_twins import (
    BATCH,
    CHECKED,
    FRAMES,
    SIZE,
    build,
    canvas_of,
    inputs,
    learn,
    traced,
)

from ai_wam.canvas import Canvas
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from backbones.weights.denoiser_folder import split_weights
from backbones.weights.lora import merge_lora
from backbones.weights.sharded_loading import deferred_weights
from tasks.joint import JointGeneration


def test_a_saved_step_continues_bitwise(
    backbone: VideoBackbone, tmp_path: Path, request: pytest.FixtureRequest
):
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)

    def step(model: VideoBackbone, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(canvas, context, torch.tensor([0.7, 0.3]), noise).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def new() -> tuple[VideoBackbone, torch.optim.Optimizer]:
        model = build(request.node.callspec.params["backbone"]).train()
        return model, torch.optim.AdamW(model.denoiser.parameters(), lr=1e-2)

    first, optimizer = new()
    began = step(first, optimizer)
    torch.save((first.state_dict(), optimizer.state_dict()), tmp_path / "step.ckpt")
    expected = step(first, optimizer)
    resumed, again = new()
    for parameter in resumed.denoiser.parameters():
        torch.nn.init.ones_(parameter)  # nothing of the start may be left
    weights, moments = torch.load(tmp_path / "step.ckpt", weights_only=True)
    resumed.load_state_dict(weights, strict=True)
    again.load_state_dict(moments)
    assert torch.equal(step(resumed, again), expected)
    assert not torch.equal(expected, began)
    for (name, one), other in zip(first.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.filterwarnings(  # the tracer looks at .grad of every tensor it meets
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor is being accessed:UserWarning"
)
@pytest.mark.parametrize("change", ["training.gradient_checkpointing=true", "training.compile_blocks=true"])
@pytest.mark.parametrize("file", CHECKED, ids=lambda file: file.stem)
def test_a_step_is_the_same_with_less_memory_and_compiled(
    file: Path, change: str, monkeypatch: pytest.MonkeyPatch
):
    traced(monkeypatch)
    # The first and the last block, which Mochi builds otherwise; the UNet of SVD has one layer per block.
    two = ["architecture.num_layers=2"] if "num_layers" in file.read_text() else []
    plain, changed = build(file, *two).train(), build(file, *two, change).train()
    assert list(plain.state_dict()) == list(changed.state_dict())
    (loss, gradients), (other_loss, other_gradients) = learn(plain), learn(changed)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def released(backbone: VideoBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin's network as a released checkpoint would hold it, without conditions."""
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(1)
    plain = backbone.Denoiser.from_config(dict(backbone.denoiser.config))
    plain.save_pretrained(folder / backbone.folder)
    return folder


@pytest.fixture(scope="module")
def low_rank(released: Path) -> list[str]:
    return [f"pretrained={released}", "architecture=null", "training.lora.rank=2"]


def test_adapters_learn_are_saved_alone_and_merge(
    backbone: VideoBackbone, low_rank: list[str], request: pytest.FixtureRequest
):
    file = request.node.callspec.params["backbone"]
    lora, again, plain = (build(file, *words) for words in (low_rank, low_rank, low_rank[:2]))
    canvas = canvas_of(plain, "joint")
    context, noise = inputs(plain, canvas)
    u = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        silent = lora.predict(noise, u, canvas, context)
        torch.testing.assert_close(silent, plain.predict(noise, u, canvas, context), atol=1e-5, rtol=1e-5)
    before = {name: p.clone() for name, p in lora.denoiser.named_parameters() if not p.requires_grad}
    learn(lora, steps=2)
    for name, parameter in lora.denoiser.named_parameters():
        assert name not in before or torch.equal(parameter, before[name])

    saved = lora.state_dict()
    trained = {f"denoiser.{name}" for name, p in lora.denoiser.named_parameters() if p.requires_grad}
    assert set(saved) == trained
    assert any("lora_A" in name for name in saved)
    again.load_state_dict(saved, strict=True)
    with torch.no_grad():
        learned = lora.predict(noise, u, canvas, context)
        assert not torch.allclose(learned, plain.predict(noise, u, canvas, context), atol=1e-3)
        assert torch.equal(again.predict(noise, u, canvas, context), learned)
        merge_lora(lora.denoiser)
        torch.testing.assert_close(lora.predict(noise, u, canvas, context), learned, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in lora.denoiser.named_modules())
    del saved[next(name for name in saved if "lora_A" in name)]
    with pytest.raises(RuntimeError, match="lora_A"):
        again.load_state_dict(saved, strict=True)


def test_adapters_stay_float32_on_bfloat16_weights(
    backbone: VideoBackbone, low_rank: list[str], request: pytest.FixtureRequest
):
    lora = build(request.node.callspec.params["backbone"], *low_rank, "training.dtype=bfloat16")
    trained = [p for p in lora.denoiser.parameters() if p.requires_grad]
    frozen = [p for p in lora.denoiser.parameters() if not p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert sum(p.numel() for p in frozen if p.dtype == torch.bfloat16) > 0.8 * sum(p.numel() for p in frozen)
    kept = set(lora.Denoiser._keep_in_fp32_modules)
    times = [p for name, p in lora.denoiser.named_parameters() if not kept.isdisjoint(name.split("."))]
    assert {p.dtype for p in times} == {torch.float32}
    loss, gradients = learn(lora, steps=2, autocast=True)
    assert loss == loss  # not a number would not be
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert any(bool(gradient.any()) for name, gradient in gradients.items() if "lora_A" in name)
    canvas = canvas_of(lora, "policy")
    context, noise = inputs(lora, canvas)
    alone = lora.sample(canvas, context, noise, 2)  # as when testing, where no trainer asks for autocast
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lora.sample(canvas, context, noise, 2), alone)


@pytest.mark.parametrize(
    "change", ["training.gradient_checkpointing=false", "training.gradient_checkpointing=true"]
)
def test_every_block_can_be_conditioned(
    backbone: VideoBackbone, change: str, released: Path, request: pytest.FixtureRequest
):
    file = request.node.callspec.params["backbone"]
    words = [f"pretrained={released}", "architecture=null", change]
    if len(backbone.blocks) > 1:
        with pytest.raises(ValueError, match="block_rank 3 needs blocks of one size"):
            build(file, *words, "block_rank=3")
        return
    plain, told = build(file, *words), build(file, *words, "block_rank=3").train()
    canvas, other = canvas_of(told, "joint"), canvas_of(told, "labeling")
    context, noise = inputs(told, canvas)
    u = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        assert torch.equal(told.predict(noise, u, canvas, context), plain.predict(noise, u, canvas, context))
    extra = {name for name, _ in told.denoiser.named_parameters() if name.startswith("block_conditions.")}
    assert len(extra) == 2 * len(told.fsdp_units())
    assert set(told.state_dict()) == {*plain.state_dict(), *(f"denoiser.{name}" for name in extra)}
    assert extra <= set(split_weights(told.denoiser, told.input_projection, told.released_names)[1])
    with torch.no_grad():
        for up in told.denoiser.block_conditions.up:
            up.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(3))

    def gradients(first: Canvas, *later: Canvas) -> dict[str, torch.Tensor]:
        """Of the first canvas, though others are seen before the backward pass."""
        told.zero_grad()
        loss = told.loss(first, context, u, noise).sum()
        for each in later:
            told.loss(each, context, u, noise)
        loss.backward()
        return {name: p.grad.clone() for name, p in told.denoiser.named_parameters() if name in extra}

    alone, among = gradients(canvas), gradients(canvas, other)
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, among[name]), name
    again = copy.deepcopy(told.denoiser)
    assert again.get_submodule(told.blocks[0])._conditions[0] is again.block_conditions


def test_weights_that_are_read_later_are_those_read_at_once(
    backbone: VideoBackbone, low_rank: list[str], request: pytest.FixtureRequest
):
    file, words = request.node.callspec.params["backbone"], [*low_rank, "training.dtype=bfloat16"]
    with deferred_weights():
        later = build(file, *words)
    empty = {name for name, value in later.denoiser.state_dict().items() if value.is_meta}
    assert len(empty) == len(later.released_names)
    later.materialize()
    found, wanted = later.denoiser.state_dict(), build(file, *words).denoiser.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value) or name not in empty, name
    context, noise = inputs(later, canvas := canvas_of(later, "joint"))
    assert later.sample(canvas, context, noise, 1).isfinite().all()


@pytest.mark.parametrize("adapters", [False, True])
def test_every_trained_parameter_is_optimized_once(
    backbone: VideoBackbone, low_rank: list[str], adapters: bool, request: pytest.FixtureRequest
):
    made = build(request.node.callspec.params["backbone"], *(low_rank if adapters else ()))
    task = JointGeneration(made, Clip(frames=FRAMES, size=SIZE, views=("front", "side")))
    grouped = [id(p) for group in task.parameter_groups() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in task.parameters() if p.requires_grad}


def test_a_copy_in_another_process_computes_the_same(backbone: VideoBackbone):
    twin = pickle.loads(pickle.dumps(backbone))
    canvas = canvas_of(backbone, "policy")
    context, noise = inputs(backbone, canvas)
    with torch.no_grad():
        found = twin.loss(canvas, context, torch.ones(BATCH), noise)
        assert torch.equal(found, backbone.loss(canvas, context, torch.ones(BATCH), noise))
