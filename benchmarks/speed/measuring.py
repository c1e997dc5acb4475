"""Shared by the measurements of backbones: random inputs, a chunk, FLOPs, and interleaved times."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as symbolic
from torch.utils.flop_counter import FlopCounterMode

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.types import LatentSpec
from backbones.base import VideoBackbone
from backbones.conditions.prompts import Context


def canvas_of(
    backbone: VideoBackbone, name: str, size: tuple[int, int], frames: int, rows: int = 1
) -> tuple[Canvas, Context]:
    """A canvas of random latents and its context, two views, on the backbone's device."""
    spec, device = backbone.spec, next(backbone.denoiser.parameters()).device
    latents = (rows, 2, spec.channels, spec.latent_frames(frames), *spec.grid(size))
    cameras = Cameras(
        (torch.eye(3) * size[0]).expand(rows, 2, 1, 3, 3), torch.eye(4).expand(rows, 2, 1, 4, 4)
    )
    video, action = (torch.randn(latents, device=device) for _ in range(2))
    mask = torch.ones(rows, 2, dtype=torch.bool, device=device)
    still = backbone.encode_still(
        torch.zeros(rows, 2, 3, 1, *size, device=device), video[:, :, :, :1], frames
    )
    canvas = build_canvas(
        plan(name), spec, size, cameras.to(device), mask, video[:, :, :, :1], action[:, :, :, :1], video,
        action, stills=None if still is None else (still, still),
    )  # fmt: skip
    now = torch.zeros(rows, 2, 3, 1, *size, device=device)
    return canvas, backbone.encode_context(["reach the red ball"] * rows, now, mask)


def whole_clip(spec: LatentSpec, frames: int) -> int:
    """Frames of the shortest clip of at least `frames` frames that a backbone takes."""
    return -(-(frames - 1) // spec.frame_multiple) * spec.frame_multiple + 1


def fitting_size(spec: LatentSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width as asked, or the only ones that a backbone takes."""
    grid, stride = spec.only_grid, spec.spatial_stride
    return size if grid is None else (grid[0] * stride, grid[1] * stride)


def shipped(name: str) -> VideoBackbone:
    """A tiny twin by its name in configs/backbone."""
    kind: Any = VideoBackbone  # abstract, which mypy would not have here
    backbone: VideoBackbone = instantiate(f"configs/backbone/{name}.yaml", kind)
    return backbone


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least milliseconds of CPU time of each function, measured in turns after one uncounted round."""
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if turn:
                best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def flops(function: Callable[[], object]) -> float:
    """Floating-point operations of a call: matrix products, convolutions and attention.

    A network that leaves out the padding of prompts is counted with full ones where tensors have no values.
    """
    full = symbolic.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]  # made at import
    with FlopCounterMode(display=False) as counter, torch.no_grad(), full:
        function()
    return float(counter.get_total_flops())


def chunk(
    backbone: VideoBackbone,
    canvas: Canvas,
    context: Context,
    noise: Tensor,
    steps: int,
    frames: int | None = None,
) -> Tensor:
    """Predict one chunk: sample the canvas and decode its action segments."""
    latents = backbone.sample(canvas, context, noise, steps)
    parts = zip(canvas.segments, canvas.unpack(latents), strict=True)
    actions = [part for segment, part in parts if segment.kind.value == "action"]
    return backbone.decode(torch.stack(actions, dim=1), frames)
