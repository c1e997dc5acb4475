"""The released Action Images checkpoint in our names: against its forward, stated again in plain torch."""

import math
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.cli import main
from ai_wam.cli.shipped_configs import instantiate
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import Context, HashedWords
from backbones.wan import Wan
from backbones.weights.action_images_release import from_released, read_checkpoint, to_released

WIDTH, HEAD, LAYERS, FFN, FREQ, TEXT, LATENT = 48, 24, 2, 64, 16, 16, 12
SIZE, FRAMES, VIEWS = (32, 32), 9, 2
U = torch.tensor([0.0625])  # early: diffusers' float32 phases of late times are 1e-5 off
State = dict[str, Tensor]


def released(cameras: bool = True, projectors: bool = True) -> State:
    """Random weights in the released names."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float | None = None) -> Tensor:
        return torch.randn(shape, generator=g) * (scale or shape[-1] ** -0.5)

    state: State = {}

    def linear(name: str, out: int, taken: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(out, taken), draw(out, scale=0.1)

    state["patch_embedding.weight"] = draw(WIDTH, LATENT, 1, 2, 2, scale=0.15)
    state["patch_embedding.bias"] = draw(WIDTH, scale=0.1)
    linear("text_embedding.0", WIDTH, TEXT)
    linear("text_embedding.2", WIDTH, WIDTH)
    linear("time_embedding.0", WIDTH, FREQ)
    linear("time_embedding.2", WIDTH, WIDTH)
    linear("time_projection.1", 6 * WIDTH, WIDTH)
    linear("head.head", 4 * LATENT, WIDTH)
    state["head.modulation"] = draw(1, 2, WIDTH)
    for n in range(LAYERS):
        for kind in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"blocks.{n}.{kind}.{part}", WIDTH, WIDTH)
            for norm in ("norm_q", "norm_k"):
                state[f"blocks.{n}.{kind}.{norm}.weight"] = 1 + draw(WIDTH, scale=0.2)
        state[f"blocks.{n}.norm3.weight"] = 1 + draw(WIDTH, scale=0.2)
        state[f"blocks.{n}.norm3.bias"] = draw(WIDTH, scale=0.2)
        linear(f"blocks.{n}.ffn.0", FFN, WIDTH)
        linear(f"blocks.{n}.ffn.2", WIDTH, FFN)
        state[f"blocks.{n}.modulation"] = draw(1, 6, WIDTH)
        if projectors:
            linear(f"blocks.{n}.projector", WIDTH, WIDTH)
        if cameras:
            linear(f"blocks.{n}.cam_encoder.2", WIDTH, 48 * 16 * 16)
    return state


def their_forward(s: State, latents: Tensor, t: Tensor, text: Tensor, cameras: Tensor | None) -> Tensor:
    """What the released network computes: latents "b c f h w", t in 0..1000, cameras "b f e h w"."""

    def lin(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def rms(name: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * s[f"{name}.weight"]

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), eps=1e-6)

    b, _, f, h, w = latents.shape
    p, q = h // 2, w // 2
    x = F.conv3d(latents, s["patch_embedding.weight"], s["patch_embedding.bias"], stride=(1, 2, 2))
    x = x.flatten(2).transpose(1, 2)

    half = FREQ // 2
    angle = t.double()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    wave = torch.cat([angle.cos(), angle.sin()], dim=1).float()
    e = lin("time_embedding.2", F.silu(lin("time_embedding.0", wave)))
    six = lin("time_projection.1", F.silu(e)).view(b, 6, WIDTH)
    context = lin("text_embedding.2", F.gelu(lin("text_embedding.0", text), approximate="tanh"))

    rest = HEAD // 3 // 2 * 2  # channels of the vertical and of the horizontal axis, in pairs
    axes = ((HEAD - 2 * rest, f, 0), (rest, p, 1), (rest, q, 2))
    turns = []
    for size, length, axis in axes:
        speed = 1 / 10000 ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        turn = torch.polar(
            torch.ones(length, size // 2, dtype=torch.float64), torch.arange(length)[:, None] * speed
        )
        shape = [1, 1, 1, size // 2]
        shape[axis] = length
        turns.append(turn.view(shape).expand(f, p, q, -1))
    rope = torch.cat(turns, dim=-1).reshape(1, f * p * q, 1, HEAD // 2)

    def heads(x: Tensor) -> Tensor:
        return x.view(b, -1, WIDTH // HEAD, HEAD)

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(heads(x).double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * rope).flatten(3).float()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(HEAD)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)

    for n in range(LAYERS):
        name = f"blocks.{n}"
        shift1, scale1, gate1, shift2, scale2, gate2 = (s[f"{name}.modulation"] + six).chunk(6, dim=1)
        seen = norm(x) * (1 + scale1) + shift1
        if cameras is not None:
            pooled = F.adaptive_avg_pool3d(cameras, (48, 16, 16)).flatten(2)
            vector = lin(f"{name}.cam_encoder.2", pooled)
            seen = seen + vector[:, :, None].expand(-1, -1, p * q, -1).reshape(b, f * p * q, WIDTH)
        own = f"{name}.self_attn"
        query, key = (turned(rms(f"{own}.norm_{k}", lin(f"{own}.{k}", seen))) for k in "qk")
        found = lin(f"{own}.o", attend(query, key, heads(lin(f"{own}.v", seen))))
        if f"{name}.projector.weight" in s:
            found = lin(f"{name}.projector", found)
        x = x + gate1 * found
        other = f"{name}.cross_attn"
        asked = norm(x) * s[f"{name}.norm3.weight"] + s[f"{name}.norm3.bias"]
        query = heads(rms(f"{other}.norm_q", lin(f"{other}.q", asked)))
        key = heads(rms(f"{other}.norm_k", lin(f"{other}.k", context)))
        x = x + lin(f"{other}.o", attend(query, key, heads(lin(f"{other}.v", context))))
        inner = lin(f"{name}.ffn.0", norm(x) * (1 + scale2) + shift2)
        x = x + gate2 * lin(f"{name}.ffn.2", F.gelu(inner, approximate="tanh"))

    shift, scale = (s["head.modulation"] + e[:, None]).chunk(2, dim=1)
    out = lin("head.head", norm(x) * (1 + scale) + shift).view(b, f, p, q, 2, 2, LATENT)
    return torch.einsum("bfhwpqc->bcfhpwq", out).reshape(b, LATENT, f, h, w)


def folder_of(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source, out = tmp_path / "released.safetensors", tmp_path / "converted"
    save_file(state, source)
    run(monkeypatch, f"--source={source}", f"--out={out}", f"--head_width={HEAD}")
    return out


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ai-wam", "convert-checkpoint", *words])
    main()


def wan(folder: Path, cameras: bool) -> Wan:
    parts = {"codec": PatchCodec(LATENT), "prompts": HashedWords(TEXT, 8)}
    return Wan(str(folder), camera_encoders=cameras, time="shared", known_observation=False, **parts)


def inputs(model: Wan, name: str) -> tuple[Canvas, Context, Tensor]:
    g = torch.Generator().manual_seed(1)
    video, action = torch.rand(2, 1, VIEWS, 3, FRAMES, *SIZE, generator=g) * 2 - 1
    poses = torch.eye(4).repeat(1, VIEWS, 1, 1, 1)
    poses[:, :, :, 0, 3] = torch.arange(VIEWS)[:, None]
    cameras = Cameras((torch.eye(3) * 30).expand(1, VIEWS, 1, 3, 3), poses)
    mask = torch.ones(1, VIEWS, dtype=torch.bool)
    first, whole = ([model.encode(part[:, :, :, :n]) for part in (video, action)] for n in (1, FRAMES))
    told = model.encode_cameras(cameras, SIZE, FRAMES)
    canvas = build_canvas(plan(name), model.spec, SIZE, cameras, mask, *first, *whole, camera_latents=told)
    context = model.encode_context(["reach the red ball"], video[:, :, :, :1], mask)
    noise = torch.randn(canvas.clean.shape, generator=g)
    return canvas, context, torch.where(canvas.given, canvas.clean, noise)


@pytest.mark.parametrize("name", ["joint", "policy"])
@pytest.mark.parametrize(
    ("cameras", "projectors"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_ours_predicts_what_theirs_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cameras: bool, projectors: bool
):
    state = released(cameras, projectors)
    model = wan(folder_of(state, tmp_path, monkeypatch), cameras)
    canvas, context, noisy = inputs(model, name)
    told = None if canvas.camera_latents is None else canvas.camera_latents.transpose(1, 2)
    with torch.no_grad():
        ours = model.predict(noisy, U, canvas, context)
        theirs = their_forward(state, noisy, 1000 * U, context.tokens, told)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("cameras", "suffix"), [(True, "ckpt"), (False, "safetensors")])
def test_back_again_it_is_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cameras: bool, suffix: str
):
    state = released(cameras)
    folder = folder_of(state, tmp_path, monkeypatch)
    run(monkeypatch, f"--source={folder}", f"--out={tmp_path / f'back.{suffix}'}")
    back = read_checkpoint(tmp_path / f"back.{suffix}")
    assert back.keys() == released().keys()
    canvas, context, noisy = inputs(wan(folder, cameras), "joint")
    told = None if canvas.camera_latents is None else canvas.camera_latents.transpose(1, 2)
    arguments = (noisy, 1000 * U, context.tokens)
    silent = torch.randn(1, noisy.shape[2], 24, 4, 4) if told is None else told
    theirs, again = their_forward(state, *arguments, told), their_forward(back, *arguments, silent)
    torch.testing.assert_close(again, theirs, atol=1e-5, rtol=0)


def test_cameras_and_projectors_have_a_say():
    """Or the equalities above would prove nothing of them."""
    state, x = released(), torch.randn(1, LATENT, 3, 4, 4)
    arguments = (x, 1000 * U, torch.randn(1, 4, TEXT))
    cameras = torch.randn(1, 3, 24, 4, 4)
    seen = their_forward(state, *arguments, cameras)
    assert (seen - their_forward(state, *arguments, None)).abs().max() > 0.1
    assert (seen - their_forward(released(projectors=False), *arguments, cameras)).abs().max() > 0.1


def test_folding_is_exact_to_a_rounding():
    state = {name: value.bfloat16() for name, value in released().items()}
    found = from_released(state, HEAD).weights["blocks.1.attn1.to_out.0.weight"]
    exact = state["blocks.1.projector.weight"].double() @ state["blocks.1.self_attn.o.weight"].double()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.to(torch.bfloat16))


def test_diffusers_alone_loads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = folder_of(released(), tmp_path, monkeypatch)
    plain = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    assert sorted(part.name for part in folder.iterdir()) == ["backbone.yaml", "transformer"]
    assert plain.config.num_layers == LAYERS
    adapter = load_file(folder / "transformer" / "adapter.safetensors")
    assert adapter.keys() == {
        f"camera_encoders.maps.{n}.{p}" for n in range(LAYERS) for p in ("weight", "bias")
    }


def test_the_yaml_beside_it_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With tiny stand-ins for the parts of the base model, whose name reaches them."""
    folder, asked = folder_of(released(), tmp_path, monkeypatch), []
    monkeypatch.setattr(Wan, "released_codec", lambda _, place: asked.append(place) or PatchCodec(LATENT))
    monkeypatch.setattr(Wan, "released_prompts", lambda _, place: asked.append(place) or HashedWords(TEXT, 8))
    model = instantiate(str(folder / "backbone.yaml"), VideoBackbone)
    assert set(asked) == {"Wan-AI/Wan2.2-TI2V-5B-Diffusers"}
    assert (model.spec.time, model.prediction) == ("shared", "native")
    monkeypatch.chdir(tmp_path)  # a folder named from here loads from elsewhere
    run(monkeypatch, "--source=released.safetensors", "--out=beside", f"--head_width={HEAD}")
    monkeypatch.chdir("/")
    instantiate(str(tmp_path / "beside" / "backbone.yaml"), VideoBackbone)
    wanted = released()["blocks.1.cam_encoder.2.weight"]
    assert torch.equal(model.denoiser.camera_encoders.maps[1].weight, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.self_attn.z.weight": torch.zeros(1)}, r"unknown names, such as blocks\.0\.self_attn\.z"),
        ({"img_emb.proj.0.weight": torch.zeros(1)}, r"1 unknown names, such as img_emb\.proj\.0\.weight"),
        ({"time_embedding.2.bias": None}, r"1 missing names, such as time_embedding\.2\.bias"),
        ({"blocks.1.projector.bias": None}, r"1 missing names, such as blocks\.1\.projector\.bias"),
        ({"blocks.0.cam_encoder.2.weight": None}, r"1 missing names, such as blocks\.0\.cam_encoder\.2"),
        ({"blocks.7.norm3.bias": torch.zeros(1)}, r"1 unknown names, such as blocks\.7\.norm3\.bias"),
        ({"blocks.1.norm3.bias": torch.zeros(5)}, r"blocks\.1\.norm3\.bias is \[5\] instead of \[48\]"),
        ({"blocks.1.projector.bias": torch.zeros(5)}, r"blocks\.1\.projector\.bias is \[5\]"),
        ({"blocks.0.cam_encoder.2.weight": torch.zeros(48, 4)}, r"is \[48, 4\] instead of \[48, 12288\]"),
        ({"patch_embedding.weight": torch.zeros(48, 12)}, r"patch_embedding\.weight has shape \[48, 12\]"),
    ],
)  # fmt: skip
def test_what_does_not_belong_is_named(change: dict[str, Tensor | None], message: str):
    state = {**released(), **change}
    with pytest.raises(ValueError, match=message):
        from_released({name: value for name, value in state.items() if value is not None}, HEAD)


def test_sizes_are_those_of_the_released_model():
    """Wan 2.2 TI2V 5B and 1,415.8 M weights of camera encoders and projectors, from shapes alone."""
    size = {
        "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48,
        "text_dim": 4096, "freq_dim": 256, "ffn_dim": 14336, "num_layers": 30, "patch_size": (1, 2, 2),
    }  # fmt: skip
    with torch.device("meta"):
        network = WanTransformer3DModel(**size)
        theirs = to_released(network.state_dict(), {})
        config, weights, adapter = from_released(theirs)
    assert config == size
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    own, cameras = (sum(value.numel() for value in part.values()) / 1e6 for part in (weights, adapter))
    assert own == pytest.approx(4999.8, abs=0.1)
    assert cameras == pytest.approx(1132.6, abs=0.1)
    assert sum(value.numel() for value in theirs.values()) / 1e6 - own == pytest.approx(1415.8, abs=0.1)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="tokens of 48 channels are no whole number of heads of 128"):
        from_released(released())


def test_what_the_released_network_cannot_hold_is_refused():
    weights, adapter = from_released(released(), HEAD)[1:]
    assert to_released(weights, {**adapter, "patch_embedding.extra.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"no place for patch_embedding\.extra\.weight \(1 in all\)"):
        to_released(weights, {**adapter, "patch_embedding.extra.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"no Wan text-to-video network of diffusers: 1 missing"):
        to_released({name: weights[name] for name in weights if name != "proj_out.bias"}, {})


def test_a_checkpoint_is_tensors_by_name(tmp_path: Path):
    state = released()
    torch.save(state, tmp_path / "good.ckpt")
    assert read_checkpoint(tmp_path / "good.ckpt").keys() == state.keys()
    torch.save({"state_dict": state}, tmp_path / "nested.ckpt")
    with pytest.raises(ValueError, match=r"must hold weights by their names, found \['state_dict'\]"):
        read_checkpoint(tmp_path / "nested.ckpt")
    torch.save({"weight": torch.zeros(1), "run": Path("x")}, tmp_path / "unsafe.ckpt")
    with pytest.raises(ValueError, match=r"unsafe\.ckpt' is damaged, or holds more than plain values"):
        read_checkpoint(tmp_path / "unsafe.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678{")
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
        read_checkpoint(tmp_path / "cut.safetensors")


def test_the_command_overwrites_nothing_and_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, out = tmp_path / "in.safetensors", tmp_path / "out"
    save_file(released(), source)
    out.mkdir()
    with pytest.raises(SystemExit, match="out is already there and is not overwritten"):
        run(monkeypatch, f"--source={source}", f"--out={out}", f"--head_width={HEAD}")
    with pytest.raises(SystemExit, match="no whole number of heads of 128"):
        run(monkeypatch, f"--source={source}", f"--out={tmp_path / 'new'}")
    with pytest.raises(SystemExit, match="there is no file or folder"):
        run(monkeypatch, f"--source={tmp_path / 'none'}", f"--out={tmp_path / 'new'}")
    assert sorted(part.name for part in tmp_path.iterdir()) == ["in.safetensors", "out"]
