"""The part of `python -m benchmarks.speed.backbones` that runs full sizes on a GPU, with random weights."""

import time
from collections.abc import Callable
from typing import Any

import torch

from backbones.base import VideoBackbone
from backbones.weights.lora import LoRA
from backbones.weights.training_options import Training
from benchmarks.speed.measuring import canvas_of, chunk, fitting_size, flops, whole_clip
from benchmarks.speed.released_sizes import SIZES, build


def print_measured(steps: int, size: int = 512, frames: int = 41) -> None:
    """Print a line per model; for models that do not fit the line says so."""
    device = torch.device("cuda")
    rate = matrix_rate(device)
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in bfloat16 matrix products of 8192")
    for name in SIZES:
        for what in (acting, training):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                found = what(name, (size, size), frames, steps, rate, device)
            except torch.cuda.OutOfMemoryError:
                found = f"{what.__name__} does not fit into this GPU's memory"
            peak = torch.cuda.max_memory_allocated() / 1e9
            print(f"  {name:<20} {found}; {peak:.1f} GB at most", flush=True)


def acting(
    name: str, size: tuple[int, int], frames: int, steps: int, rate: float, device: torch.device
) -> str:
    """Seconds per policy chunk, and the denoiser's share of the machine's matrix rate."""
    with torch.device(device):
        model = half(build(name))
        size = fitting_size(model.spec, size)
        canvas, context = canvas_of(model, "policy", size, whole_clip(model.spec, frames))
        noise, u = torch.randn_like(canvas.clean), torch.full((1,), 0.5)
    whole = seconds(lambda: chunk(model, canvas, context, noise, steps, 9), device)
    denoising = seconds(lambda: model.sample(canvas, context, noise, steps), device)
    with torch.autocast(device.type, torch.bfloat16):
        work = steps * flops(lambda: model.predict(noise, u, canvas, context))
    return (
        f"{whole:6.2f} s per chunk ({steps} steps, 9 frames decoded), denoiser at "
        f"{100 * work / denoising / rate:.0f} % of the matrix rate"
    )


def training(
    name: str, size: tuple[int, int], frames: int, steps: int, rate: float, device: torch.device
) -> str:
    """Seconds of a LoRA step on cached latents, and how much more the released recipe's encoding takes."""
    with torch.device(device):
        model = half(build(name, training=Training(lora=LoRA(rank=32), gradient_checkpointing=True))).train()
        size, frames = fitting_size(model.spec, size), whole_clip(model.spec, frames)
        canvas, context = canvas_of(model, "joint", size, frames)
        noise, u = torch.randn_like(canvas.clean), torch.full((1,), 0.5)
        clips = torch.zeros(1, 2, 3, frames, *size)
        trained = [p for p in model.denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss(canvas, context, u, noise).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def released() -> None:  # first frame and clip, video and action images, two views: eight encodes
        for _ in range(2):
            model.encode(clips[:, :, :, :1])
            model.encode(clips)
        step()

    cached, encoding = seconds(step, device), seconds(released, device)
    return f"{cached:6.2f} s per LoRA step on cached latents, x {encoding / cached:.2f} with eight encodes"


def half(model: VideoBackbone) -> VideoBackbone:
    """Frozen weights of the denoiser in bfloat16, except those that released models keep in float32."""
    kept = tuple(model.Denoiser._keep_in_fp32_modules or ())
    whole = model.lora is None
    for name, parameter in model.denoiser.named_parameters():
        if (whole or not parameter.requires_grad) and not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.bfloat16()
    model.weights_dtype = torch.bfloat16
    return model


def matrix_rate(device: torch.device, size: int = 8192) -> float:
    """Operations per second of a large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def seconds(function: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    """Least seconds of a call, after two that do not count."""
    best = float("inf")
    for turn in range(rounds + 2):
        _finish(device)
        start = time.perf_counter()
        function()
        _finish(device)
        if turn > 1:
            best = min(best, time.perf_counter() - start)
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
