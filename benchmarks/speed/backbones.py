"""Costs of the backbones in time and memory: `python -m benchmarks.speed.backbones [--tiny]`.

With `--tiny`: every tiny twin on this machine, each in a process of its own (parameters, ms per training
step, ms per chunk, peak memory), and one ratio per mechanism, measured in one process. Without: the released
models at 512 x 512, 41 frames, 2 views, with random weights: computed parameters, tokens and TFLOP always;
times where there is a GPU, else a line that nothing was run.
"""

import json
import resource
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from tqdm import tqdm

from ai_wam.canvas import condition_channels
from ai_wam.cli.shipped_configs import config_path
from ai_wam.errors import CannotContinue
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import HashedWords
from backbones.wan import Wan, WanVAE
from benchmarks.speed.computed_work import computed_work
from benchmarks.speed.gpu_times import print_measured
from benchmarks.speed.measuring import (
    canvas_of,
    chunk,
    flops,
    interleaved,
    shipped,
)
from benchmarks.speed.released_sizes import SIZES
from benchmarks.speed.sizes import BYTES, CARDS

PEAK, BANDWIDTH = CARDS[0].rate, CARDS[0].bandwidth  # of an H100
_PLANS = ("joint", "policy")
_SMALL = {"patch_size": [1, 2, 2], "num_attention_heads": 4, "attention_head_dim": 48, "ffn_dim": 768}


def main(tiny: bool = False, steps: int = 4, only: str | None = None) -> None:
    """Print the tables; the parser at the end says what the arguments mean."""
    torch.set_num_threads(1)
    if only is not None:
        print(json.dumps(tiny_costs(only, steps)))
    elif tiny:
        print_twins(steps)
        print_mechanisms(steps)
    else:
        print_computed(steps)
        if torch.cuda.is_available():
            print_measured(steps)
        else:
            print("no GPU here: nothing above was run, it was computed from shapes")


# ---------------------------------------------------------------------- tiny twins


def tiny_costs(name: str, steps: int) -> dict[str, float]:
    """Parameters, milliseconds and memory of one tiny twin: 64 px, 9 frames, 2 views."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(0)
    backbone = shipped(name)
    optimizer = torch.optim.AdamW(backbone.denoiser.parameters(), lr=1e-4, fused=True)
    canvas, context = canvas_of(backbone, "joint", (64, 64), 9, rows=4)
    noise = torch.randn_like(canvas.clean)

    def train() -> None:
        loss = backbone.loss(canvas, context, torch.rand(4), noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    canvas, context = canvas_of(backbone, "policy", (64, 64), 9)
    start = torch.randn_like(canvas.clean)
    found = interleaved({"step": train, "chunk": lambda: chunk(backbone, canvas, context, start, steps)}, 5)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = sum(p.numel() for p in backbone.denoiser.parameters())
    return {"parameters": parameters / 1e6, "memory": (after - before) / 1024, **found}


def print_twins(steps: int) -> None:
    """One row per tiny twin."""
    names = sorted(file.stem for file in config_path("configs/backbone").glob("*-tiny.yaml"))
    print(
        f"tiny twins, one thread, CPU time, 64 px, 9 frames, 2 views; a chunk is {steps} steps and decoding"
    )
    print(f"{'':<26}{'parameters':>12}{'training step':>16}{'policy chunk':>15}{'memory above import':>22}")
    for name in tqdm(names, desc="twins", leave=False):
        command = [sys.executable, "-m", "benchmarks.speed.backbones", f"--only={name}", f"--steps={steps}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotContinue(f"{name}: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"  {name:<24}{found['parameters']:>10.2f} M{found['step']:>13.0f} ms{found['chunk']:>12.0f} ms"
            f"{found['memory']:>19.0f} MB"
        )


# ---------------------------------------------------------------------- mechanisms


def print_mechanisms(steps: int) -> None:
    """Print one ratio per mechanism, both sides measured in one run."""
    print("mechanisms, one thread, least CPU time of several turns")
    torch.manual_seed(0)
    model = shipped("wan-tiny")
    canvas, context = canvas_of(model, "joint", (64, 64), 9)
    noise, u = torch.randn_like(canvas.clean), torch.full((1,), 0.5)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(steps):
            model.predict(noise, u, canvas, context)

    found = interleaved({"bare": bare, "sample": lambda: model.sample(canvas, context, noise, steps)}, 20)
    _ratio("sampler over its bare forwards", found["sample"] / found["bare"] - 1, "<= 10 %", percent=True)
    runs: dict[str, Callable[[], object]] = {}
    for name in ("joint", "policy"):
        canvas, context = canvas_of(model, name, (64, 64), 41)
        runs[name] = partial(model.sample, canvas, context, torch.randn_like(canvas.clean), steps)
    found = interleaved(runs, 5)
    _ratio(
        "joint canvas over policy canvas, 41 frames, equal steps", found["joint"] / found["policy"], ">= 1.6"
    )
    _print_prefix()
    _print_cache(steps)


def _print_prefix() -> None:
    codec = WanVAE(architecture={"base_dim": 8, "z_dim": 16, "num_res_blocks": 1})
    model = Wan(architecture={**_SMALL, "num_layers": 1}, codec=codec, prompts=HashedWords(16, 8))
    latents = torch.randn(1, 1, 16, 11, 8, 8)
    found = interleaved({"all": lambda: model.decode(latents), "9": lambda: model.decode(latents, 9)}, 3)
    _ratio("decoding 41 frames over the first 9 (tiny Wan VAE)", found["all"] / found["9"], ">= 3")


def _print_cache(steps: int) -> None:
    """Print time and FLOPs of the key/value cache over those of the same one-way model without it."""
    models = {}
    for cached in (False, True):
        torch.manual_seed(0)
        models[cached] = Wan(
            architecture={**_SMALL, "num_layers": 4},
            codec=PatchCodec(12),
            prompts=HashedWords(16, 8),
            given_attention="one_way",
            cache_given=cached,
        )
    for name in ("policy", "labeling"):
        canvas, context = canvas_of(models[False], name, (64, 64), 41)
        noise = torch.randn_like(canvas.clean)
        runs: dict[str, Callable[[], object]] = {
            str(cached): partial(model.sample, canvas, context, noise, steps)
            for cached, model in models.items()
        }
        found = interleaved(runs, 4)
        work = {key: flops(run) for key, run in runs.items()}
        wanted = work["True"] / work["False"]
        got = found["True"] / found["False"]
        print(
            f"  key/value cache, {name}, 41 frames, {steps} steps: time x {got:.2f}, work x {wanted:.2f}, "
            f"time over work {got / wanted:.2f} (bar: within 20 %)"
        )


def _ratio(what: str, value: float, bar: str, percent: bool = False) -> None:
    shown = f"{100 * value:.1f} %" if percent else f"{value:.2f}"
    print(f"  {what}: {shown} (bar: {bar})")


# ---------------------------------------------------------------------- full size


def print_computed(steps: int, size: int = 512, frames: int = 41) -> None:
    """Parameters, tokens and work of every released size, from shapes alone."""
    print(
        f"{size} x {size} (480 x 720 where no other fits), {frames} frames or the next valid number, 2 "
        "views; TFLOP of one forward of one row, and of one clip through the video autoencoder. Weights of "
        f"the denoiser in bfloat16. Floors of one policy step, and of a chunk of {steps} steps and 2 decoded "
        f"beginnings, at an H100's {PEAK / 1e12:.0f} TFLOP/s (bfloat16, dense) and {BANDWIDTH / 1e12:.2f} "
        "TB/s: no less time is possible"
    )
    heads = (
        "denoiser",
        "adapter",
        "tokens joint",
        "policy",
        "TFLOP joint",
        "policy",
        "encode",
        "decode 9",
        "decode",
        "weights",
        "floor: step",
        "chunk",
    )
    print(f"{'':<22}" + "".join(f"{head:>14}" for head in heads))
    for name in tqdm(SIZES, desc="sizes", leave=False):
        print(
            f"  {name:<16}" + "".join(f"{cell:>14}" for cell in computed(name, (size, size), frames, steps))
        )


def computed(name: str, size: tuple[int, int], frames: int, steps: int = 4) -> list[str]:
    """The cells of one row of `print_computed`."""
    work = computed_work(name, _PLANS, size, frames)
    weights = BYTES * work.parameters
    step = max(work.forward["policy"] / PEAK, weights / BANDWIDTH)
    act = steps * step + 2 * work.decode_beginning / PEAK
    counted = [*work.forward.values(), work.encode, work.decode_beginning, work.decode]
    return [
        f"{work.parameters / 1e9:.3f} B", adapters(work.model), *(f"{n:,}" for n in work.tokens.values()),
        *(f"{n / 1e12:.1f}" for n in counted), f"{weights / 1e9:.1f} GB",
        f"{1e3 * step:.0f} ms", f"{act:.2f} s",
    ]  # fmt: skip


def adapters(model: VideoBackbone) -> str:
    """Millions of parameters that the adapter adds: without the known observation's latent, and with it."""
    owner = model.denoiser.get_submodule(model.input_projection)
    per_channel = sum(p.numel() for p in owner.extra.parameters()) / condition_channels(model.spec)
    variants = sorted({False, model.spec.known_observation})
    sizes = [
        per_channel * condition_channels(replace(model.spec, known_observation=each)) for each in variants
    ]
    return " / ".join(f"{size / 1e6:.2f}" for size in sizes) + " M"


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="measure the tiny twins on this machine")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps of a chunk")
    parser.add_argument("--only", help="one tiny YAML by its name; prints its costs as JSON")
    main(**vars(parser.parse_args()))
