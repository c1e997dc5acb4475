"""Time that a cache of latents saves: `python -m benchmarks.speed.cache`; all ratios in one run, by CPU time.

Episodes are long and have five views of which a clip uses two. Samples per second of the shard loader with
latents are compared with a plain loader that decodes a sample's episode whole, all views; training steps with
latents with the same steps that decode and encode, and with steps that send eight clips through the video
autoencoder, as the released recipe does (observation, action, ray directions and moments of two views).
The autoencoder is Wan's own, tiny and with random weights; the denoiser is tiny too, so the ratios of steps
show that the mechanism works, not the gain at a released size.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli

from ai_wam.canvas import latent_rays, plan
from ai_wam.types import Batch, Clip
from backbones.conditions.prompts import HashedWords
from backbones.wan import Wan, WanVAE
from benchmarks.speed.data import USED, VIEWS, baseline_rate, whole_mp4s
from benchmarks.speed.measuring import interleaved
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.clip_dataset import ClipDataset, Collate
from datamodules.latent_cache_writer import Caching, write_cache
from datamodules.shards.clip_windows import Windows
from datamodules.shards.convert_source import write_shards
from datamodules.shards.latent_cache import cache_settings, find_cache
from datamodules.shards.parallel_writing import Workers
from datamodules.shards.reader import ShardSet
from tasks.joint import JointGeneration

_FASTER = 50.0  # the bar
_WAN = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 512, "num_layers": 4, "freq_dim": 64}


def main(
    episodes: int = 2,
    frames: int = 400,
    size: int = 128,
    every: int = 16,
    samples: int = 512,
    lengths: tuple[int, ...] = (9, 41),
) -> None:
    """Write episodes and a cache, read in all ways, train some steps, print all with the bar.

    Args:
        episodes: episodes recorded.
        frames: frames per episode.
        size: height and width, pixels.
        every: frames from one window to the next; the first of them is what a cache stores.
        samples: read with latents per measurement; the baseline reads eight.
        lengths: frames of a clip.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shards"
        source = MovingSquares(episodes, frames, (size, size), views=VIEWS)
        write_shards(source, folder, 1, workers=0, progress=False)
        print(f"{episodes} episodes of {frames} frames, {len(VIEWS)} views of {size} px, {len(USED)} used")
        for length in lengths:
            clip = Clip(frames=length, stride=4, size=(size, size), views=USED)
            _compare(ShardSet(folder), Windows(clip, "hold", True, every), samples)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load of the machine: {load} on {os.cpu_count()} cores")


def _compare(shards: ShardSet, windows: Windows, samples: int) -> None:
    clip, task = windows.clip, task_of(windows.clip)
    plain = ClipDataset([shards], windows)
    wanted = cache_settings(task.encoders(), shards, windows, video=True)
    start = time.process_time()
    folder = write_cache(Caching(plain, task, "cpu", 4, 0, "float16", True), wanted, Workers(0), False)
    spent = time.process_time() - start
    stored = sum(path.stat().st_size for path in folder.iterdir()) / len(plain)
    cache = find_cache(shards, wanted).cache
    assert cache is not None
    cached = ClipDataset([shards], windows, caches=[cache])
    ours, theirs = rate(cached, samples), baseline_rate(shards, clip, 8, whole_mp4s)
    verdict = "met" if ours / theirs >= _FASTER else "MISSED"
    print(
        f"{clip.frames} frames: cached at {len(plain) / spent:.1f} windows/s, {stored / 1e3:.0f} kB each; "
        f"read at {ours:.0f} samples/s; whole MP4s of all views {theirs:.2f}: {ours / theirs:.0f}x "
        f"(bar >= 50x: {verdict})"
    )
    found = steps(task, plain, cached)
    print("  " + "; ".join(f"{name} {value:.0f} ms" for name, value in found.items()))
    best = found["latents of action images too"]
    print(
        f"  a training step with all latents: {found['decoded and encoded'] / best:.2f}x as fast as without, "
        f"{found['eight clips encoded'] / best:.2f}x as fast as by the released recipe"
    )
    sample = Collate(clip.frames)([cached[0]])
    computed, read = rays_computed_and_read(task, sample, Path(str(folder), "rays"))
    print(
        f"  rays of a sample: {computed:.2f} ms to compute, {read:.2f} ms to read back; computing them takes "
        f"{computed / best:.1%} of the step with all latents"
    )


def rays_computed_and_read(task: JointGeneration, sample: Batch, file: Path) -> tuple[float, float]:
    """Milliseconds of CPU time to compute a sample's rays, and to read as many bytes of a file in memory."""
    spec, size, rows = task.backbone.spec, task.clip.size, 64

    def compute() -> torch.Tensor:
        return latent_rays(sample.cameras, spec, size, task.latent_frames).contiguous()

    one = compute().numpy()
    file.write_bytes(one.tobytes() * rows)
    with file.open("rb") as stream:

        def read(row: int) -> torch.Tensor:
            data = os.pread(stream.fileno(), one.nbytes, row * one.nbytes)
            return torch.from_numpy(np.frombuffer(data, one.dtype).reshape(one.shape).copy())

        ways: dict[str, Callable[[], object]] = {
            "computed": lambda: [compute() for _ in range(rows)],
            "read": lambda: [read(row) for row in range(rows)],
        }
        found = interleaved(ways, 3)
    return found["computed"] / rows, found["read"] / rows


def task_of(clip: Clip) -> JointGeneration:
    """A small Wan behind a small Wan autoencoder, both random."""
    codec = WanVAE(architecture={"base_dim": 8, "z_dim": 16, "num_res_blocks": 1})
    return JointGeneration(Wan(architecture=_WAN, codec=codec, prompts=HashedWords(16, 16)), clip)


def rate(dataset: ClipDataset, samples: int) -> float:
    """Samples per CPU second, in batches of eight, in random order, in a second pass."""
    collate = Collate(dataset.clip.frames)
    order = torch.randint(
        len(dataset), (samples // 8, 8), generator=torch.Generator().manual_seed(0)
    ).tolist()
    for _ in range(2):
        start = time.process_time()
        for rows in order:
            collate([dataset[row] for row in rows])
        spent = time.process_time() - start
    return 8 * len(order) / spent


@dataclass(frozen=True)
class _Training:
    """One optimizer step on what a loader gives."""

    task: JointGeneration
    optimizer: torch.optim.Optimizer

    def __call__(self, batch: Batch) -> None:
        """Encode what is not cached, then forward, backward and step."""
        canvas = self.task.training_canvas(batch, plan("joint"))
        context = self.task.backbone.encode_context(batch.prompts, batch.video[:, :, :, :1], batch.view_mask)
        loss = self.task.backbone.loss(canvas, context, torch.full((len(batch.keys),), 0.5), canvas.clean)
        self.optimizer.zero_grad()
        loss.mean().backward()
        self.optimizer.step()


def steps(task: JointGeneration, plain: ClipDataset, cached: ClipDataset) -> dict[str, float]:
    """Milliseconds of CPU time of one sample's training step, reading included: the least of some turns."""
    training = _Training(task, torch.optim.AdamW(task.backbone.denoiser.parameters(), lr=1e-4))
    collate = Collate(plain.clip.frames)

    def kept(*parts: str) -> Batch:
        sample = cached[0]
        assert sample is not None
        encoded = {name: value for name, value in sample.encoded.items() if name not in parts}
        return collate([replace(sample, encoded=encoded)])

    def released() -> None:
        batch = collate([plain[0]])
        task.backbone.encode(torch.cat([batch.video] * 4, dim=1))
        training(kept())

    ways: dict[str, Callable[[], object]] = {
        "eight clips encoded": released,
        "decoded and encoded": lambda: training(collate([plain[0]])),
        "latents of pictures": lambda: training(kept("first_action", "action")),
        "latents of action images too": lambda: training(kept()),
    }
    return interleaved(ways, 3)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
