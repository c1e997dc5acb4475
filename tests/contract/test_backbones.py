"""Every backbone with a tiny YAML keeps the contract; a new one is found by its file name."""

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, joined, plan
from ai_wam.cli.configs import instantiate
from ai_wam.samplers import Solver
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from backbones.deferred import deferred_weights
from backbones.folders import split_weights
from backbones.lora import merge_lora
from backbones.prompts import Context
from tasks.joint import JointGeneration

TINY = sorted((Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml"))
SIZE, FRAMES, VIEWS, BATCH = (64, 64), 9, 2, 2


def build(file: Path, *changes: str) -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate(str(file), VideoBackbone, *changes)


@pytest.fixture(scope="module", params=TINY, ids=lambda file: file.stem)
def backbone(request: pytest.FixtureRequest) -> VideoBackbone:
    return build(request.param)


def canvas_of(backbone: VideoBackbone, name: str, future: int = 0) -> Canvas:
    """A canvas of random clips; equal first frames whatever the `future`."""
    present, later = (torch.Generator().manual_seed(seed) for seed in (0, 1 + future))
    now = torch.rand(2, BATCH, VIEWS, 3, 1, *SIZE, generator=present)
    then = torch.rand(2, BATCH, VIEWS, 3, FRAMES - 1, *SIZE, generator=later)
    video, action = torch.cat([now, then], dim=4) * 2 - 1
    k = torch.tensor([[70.0, 0, 32], [0, 70.0, 32], [0, 0, 1]]).expand(BATCH, VIEWS, 1, 3, 3)
    poses = torch.eye(4).repeat(BATCH, VIEWS, 1, 1, 1)
    poses[:, :, :, 0, 3] = torch.arange(VIEWS)[:, None]
    first = [backbone.encode(part[:, :, :, :1]) for part in (video, action)]
    whole = [backbone.encode(part) for part in (video, action)]
    stills = [
        backbone.encode_still(part[:, :, :, :1], latents, FRAMES)
        for part, latents in zip((video, action), first, strict=True)
    ]
    cameras = Cameras(k, poses)
    return build_canvas(
        plan(name),
        backbone.spec,
        SIZE,
        cameras,
        torch.ones(BATCH, VIEWS, dtype=torch.bool),
        *first,
        *whole,
        stills=None if stills[0] is None else tuple(stills),
        camera_latents=backbone.encode_cameras(cameras, SIZE, FRAMES),
    )


def inputs(backbone: VideoBackbone, canvas: Canvas) -> tuple[Context, torch.Tensor]:
    context = context_of(backbone, ["reach the red ball", ""])
    noise = torch.randn(canvas.clean.shape, generator=torch.Generator().manual_seed(1))
    return context, noise


def context_of(backbone: VideoBackbone, prompts: list[str]) -> Context:
    now = torch.rand(BATCH, VIEWS, 3, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return backbone.encode_context(prompts, now, torch.ones(BATCH, VIEWS, dtype=torch.bool))


def awaken(backbone: VideoBackbone) -> VideoBackbone:
    """Leave the zero initialisation, so that every input has a say."""
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            if (parameter == 0).all():
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    return backbone


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


def test_a_saved_step_goes_on_bitwise(
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


def learn(
    backbone: VideoBackbone, steps: int = 1, autocast: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """The last loss and gradients of a few plain steps on one joint canvas."""
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    trained = {name: p for name, p in backbone.denoiser.named_parameters() if p.requires_grad}
    for _ in range(steps):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = backbone.loss(canvas, context, torch.tensor([0.7, 0.3]), noise).sum()
        loss.backward()
        with torch.no_grad():
            for parameter in trained.values():
                assert parameter.grad is not None
                parameter -= 0.01 * parameter.grad.sign()
    return float(loss.detach()), {name: p.grad for name, p in trained.items() if p.grad is not None}


@pytest.mark.filterwarnings(  # the tracer looks at .grad of every tensor it meets
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor is being accessed:UserWarning"
)
@pytest.mark.parametrize("change", ["gradient_checkpointing=true", "compile_blocks=true"])
@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_a_step_is_the_same_with_less_memory_and_compiled(
    file: Path, change: str, monkeypatch: pytest.MonkeyPatch
):
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(  # traced, without minutes of code generation
        torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager")
    )
    plain, changed = build(file).train(), build(file, change).train()
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
    return [f"pretrained={released}", "architecture=null", "lora.rank=2"]


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
    lora = build(request.node.callspec.params["backbone"], *low_rank, "dtype=bfloat16")
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


@pytest.mark.parametrize("change", ["gradient_checkpointing=false", "gradient_checkpointing=true"])
def test_every_block_can_be_told_the_condition(
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
    assert len(extra) == 2 * len(told.units())
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
    file, words = request.node.callspec.params["backbone"], [*low_rank, "dtype=bfloat16"]
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


def in_float32(value: Any) -> Any:
    """The same arguments, floating ones in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float32
    if isinstance(value, dict):
        return {name: in_float32(part) for name, part in value.items()}
    return tuple(map(in_float32, value)) if isinstance(value, tuple) else value


def test_time_norms_positions_and_conditions_stay_in_float32(backbone: VideoBackbone):
    """What these modules make under autocast is what they make of the same in float32, rounded once."""
    awaken(backbone)
    told, calls = backbone.islands(), {}
    modules = dict(backbone.denoiser.named_modules())
    leaves = {name: module for name, module in modules.items() if not list(module.children())}
    norms = {name: module for name, module in leaves.items() if type(module).__name__.endswith("Norm")}
    watched = {**norms, **told}
    assert {name.rpartition(".")[2] for name in told} > {"extra", "modulate"}
    for name, module in modules.items():
        if type(module).__name__.endswith("TimestepEmbedding"):
            assert any(name == island or name.startswith(f"{island}.") for island in told), name

    def note(name: str, _: Any, args: Any, options: Any, made: Any) -> None:
        parts = made if isinstance(made, tuple) else (made,)
        calls.setdefault(name, (args, options, [part.clone() for part in parts]))  # some are written into

    hooks = [
        module.register_forward_hook(partial(note, name), with_kwargs=True)
        for name, module in watched.items()
    ]
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        backbone.predict(noise, torch.tensor([0.7, 0.3]), canvas, context)
    for hook in hooks:
        hook.remove()
    assert set(told) <= set(calls)
    for name, (args, options, made) in calls.items():
        with torch.no_grad():
            exact = watched[name](*in_float32(args), **in_float32(options))
        for found, wanted in zip(made, exact if isinstance(exact, tuple) else (exact,), strict=True):
            equal = float((found == wanted.to(found.dtype)).float().mean())
            assert equal == 1 if name in told else equal > 0.99, name  # torch's norms: not to the last bit


def test_half_precision_changes_little_and_the_loss_not_at_all(backbone: VideoBackbone):
    awaken(backbone)
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    u = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        exact = backbone.loss(canvas, context, u, noise)
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone.loss(canvas, context, u, noise)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.03, atol=0)


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
    if plain.shows_image(plain.denoiser.config):
        with pytest.raises(ValueError, match="shown the first frame natively"):
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


def test_a_copy_in_another_process_computes_the_same(backbone: VideoBackbone):
    twin = pickle.loads(pickle.dumps(backbone))
    canvas = canvas_of(backbone, "policy")
    context, noise = inputs(backbone, canvas)
    with torch.no_grad():
        found = twin.loss(canvas, context, torch.ones(BATCH), noise)
        assert torch.equal(found, backbone.loss(canvas, context, torch.ones(BATCH), noise))
