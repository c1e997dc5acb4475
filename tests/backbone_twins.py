"""What contract tests of backbones share: the tiny twins, and canvases and contexts of random clips."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import ADD_BACKBONE, backbone_of_the_page

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.noise_paths import FlowMatching
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import Context, HashedWords
from backbones.networks import wan_attention
from backbones.wan import Wan

TINY = sorted((Path(__file__).parents[1] / "configs" / "backbone").glob("*-tiny.yaml"))
CHECKED = [*TINY, pytest.param(ADD_BACKBONE, marks=pytest.mark.slow)]
SIZE, FRAMES, VIEWS, BATCH = (32, 32), 9, 2, 2


def build(file: Path, *changes: str) -> VideoBackbone:
    """The backbone of a YAML file, or of the page that shows one."""
    torch.manual_seed(0)
    return instantiate(str(backbone_of_the_page() if file == ADD_BACKBONE else file), VideoBackbone, *changes)


def canvas_of(backbone: VideoBackbone, name: str, future: int = 0) -> Canvas:
    """A canvas of random clips; equal first frames whatever the `future`."""
    present, later = (torch.Generator().manual_seed(seed) for seed in (0, 1 + future))
    now = torch.rand(2, BATCH, VIEWS, 3, 1, *SIZE, generator=present)
    then = torch.rand(2, BATCH, VIEWS, 3, FRAMES - 1, *SIZE, generator=later)
    video, action = torch.cat([now, then], dim=4) * 2 - 1
    k = torch.tensor([[35.0, 0, 16], [0, 35.0, 16], [0, 0, 1]]).expand(BATCH, VIEWS, 1, 3, 3)
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


def traced(patch: pytest.MonkeyPatch, **options: bool) -> None:
    """Let blocks be traced, without minutes of code generation and without the tests' checks of shapes.

    The checks break a graph into pieces that are compiled one by one; outside of tests there are none.
    """
    compile_module = torch.nn.Module.compile
    patch.setattr(
        torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager", **options)
    )
    for owner, name in ((wan_attention.WanAttention, "__call__"), (wan_attention, "_rotated")):
        patch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))


def awaken(backbone: VideoBackbone) -> VideoBackbone:
    """Leave the zero initialisation, so that every input has a say."""
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            if (parameter == 0).all():
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    return backbone


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


SMALL_WAN = {
    "patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64,
    "freq_dim": 16, "num_layers": 3,
}  # fmt: skip


def small_wan(**options: Any) -> Wan:
    """A Wan of three narrow blocks, with random weights also where its own begin at zero."""
    torch.manual_seed(0)
    given = {"path": FlowMatching(sampler_shift=3.0), **options}
    model = Wan(architecture=SMALL_WAN, codec=PatchCodec(12), prompts=HashedWords(16, 8), **given)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
    return model
