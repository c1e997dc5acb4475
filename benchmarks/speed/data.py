"""Speed and memory of the shard loader, with bars: `python -m benchmarks.speed.data`; all ratios in one run.

Episodes are long, have five views of which a clip uses two, and are stored with a key frame every `gop`
frames. The baseline reads per-episode MP4 files as plain loaders do: it decodes a sample's episode whole, all
views, and cuts the window out. A second baseline seeks to the window first.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from ai_wam.types import Clip
from ai_wam.video import VideoEncoding, decode_frames, iterate_video
from benchmarks.speed.data_scale import measure_scale, private_megabytes, write_index
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards
from datamodules.shards.episode_encoding import encode_episode
from datamodules.shards.reader import ShardSet

VIEWS = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
USED = VIEWS[:2]
_FASTER, _MEGABYTES, _CONVERTED = 5.0, 250.0, 100.0  # the bars


@dataclass(frozen=True)
class Memory:
    """Private memory of a fresh process, MB (1e6 bytes).

    Attributes:
        base: after all imports.
        grown: growth while it worked.
        largest: largest growth at any moment, by the kernel's high-water mark.
    """

    base: float
    grown: float
    largest: float


def main(episodes: int = 6, frames: int = 400, size: int = 128, gop: int = 1, samples: int = 128) -> None:
    """Write episodes, read them by shards and baselines, measure memory and conversion, print all with bars.

    Args:
        episodes: episodes written.
        frames: frames per episode.
        size: height and width, pixels.
        gop: frames from one key frame of the shards to the next.
        samples: samples read per measurement; the baselines read an eighth of them.
    """
    torch.set_num_threads(1)
    source = MovingSquares(episodes, frames, (size, size), views=VIEWS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shards"
        write_shards(source, folder, 2, workers=0, encoding=VideoEncoding(gop=gop), progress=False)
        print(f"{episodes} episodes of {frames} frames, {len(VIEWS)} views of {size} px, 2 used; gop {gop}")
        for length in (9, 41):
            for stride in (1, 4):
                clip = Clip(frames=length, stride=stride, size=(size, size), views=USED)
                _compare(str(folder), clip, samples)
        _print_memory("worker, these episodes", _in_fresh_process(_read, str(folder), size))
        long = MovingSquares(2, 10 * frames, (size, size), views=USED)
        write_shards(
            long, Path(place) / "long", 1, workers=0, encoding=VideoEncoding(gop=gop), progress=False
        )
        _print_memory("worker, ten times as long", _in_fresh_process(_read, str(Path(place) / "long"), size))
        for count in (frames, 10 * frames):
            _print_memory(
                f"conversion of one episode of {count} frames, 256 px",
                _in_fresh_process(_convert_long, count),
            )
        _print_scale(Path(place) / "large", 180_000)
    rate = conversion_rate(256)
    print(f"conversion at 256 px: {rate:.0f} pictures/s of one core {_verdict(rate >= _CONVERTED, '>= 100')}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load of the machine: {load} on {os.cpu_count()} cores")


def _print_scale(folder: Path, episodes: int) -> None:
    """An index as large as DROID's: 4 views, 200 frames."""
    folder.mkdir()
    write_index(folder, episodes, 200)
    with get_context("spawn").Pool(1) as pool:
        cost = pool.apply(measure_scale, (str(folder),))
    said = ", ".join(f"{what} {value:.1f}" for what, value in cost.items())
    bar = _verdict(cost["MB of a forked worker"] <= _MEGABYTES, "worker <= 250 MB")
    print(f"index of {episodes} episodes: {said} {bar}")


def _compare(folder: str, clip: Clip, samples: int) -> None:
    ours = shard_rate(folder, clip, samples)
    shards, few = ShardSet(folder), max(4, samples // 8)
    whole = baseline_rate(shards, clip, max(4, few // 4), whole_mp4s)
    sought = baseline_rate(shards, clip, few, _decode_sought)
    bar = _verdict(ours / whole >= _FASTER, ">= 5x") if clip.frames == 9 else "(no bar)"
    print(
        f"{clip.frames} frames, stride {clip.stride}: {ours:.1f} samples/s; whole MP4s of all views "
        f"{whole:.2f}, {ours / whole:.0f}x {bar}; seeking in all views {sought:.1f}, {ours / sought:.1f}x"
    )


def shard_rate(folder: str, clip: Clip, samples: int) -> float:
    """Samples per second of the data module in this process, batches of 8, in a second pass."""
    data = ShardDataModule(clip, folder, batch_size=8, workers=0, epoch_size=samples)
    data.setup("fit")
    loader = data.train_dataloader()
    for _ in range(2):
        begin = time.process_time()
        count = sum(len(batch.keys) for batch in loader)
        rate = count / (time.process_time() - begin)
    return rate


def baseline_rate(
    shards: ShardSet, clip: Clip, samples: int, decode: Callable[[bytes, Sequence[int]], np.ndarray]
) -> float:
    """Samples per second of a loader of per-episode MP4 files with all views; the files are in memory."""
    draw, files = (
        np.random.default_rng(0),
        [[shards.read(index, f"{view}.mp4") for view in VIEWS] for index in range(len(shards))],
    )
    begin = time.process_time()
    for _ in range(samples):
        index = int(draw.integers(len(shards)))
        last = shards.episodes[index].frames - 1
        start = int(draw.integers(last + 1))
        frames = [min(start + step * clip.stride, last) for step in range(clip.frames)]
        views = np.stack([decode(file, frames) for file in files[index]])
        torch.from_numpy(views[: len(USED)]).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
    return samples / (time.process_time() - begin)


def whole_mp4s(file: bytes, frames: Sequence[int]) -> np.ndarray:
    """Decode all frames of a file and keep some, as a loader without an index of frames does."""
    return np.stack(list(iterate_video(file)))[list(frames)]


def _decode_sought(file: bytes, frames: Sequence[int]) -> np.ndarray:
    return decode_frames(file, frames)


def conversion_rate(size: int, frames: int = 100) -> float:
    """Pictures per second of this process's own time, two views, drawn beforehand."""
    episode = MovingSquares(1, frames, (size, size), views=USED)[0]
    drawn = replace(episode, frames=list(episode.frames))
    begin = time.process_time()
    encode_episode(drawn, VideoEncoding())
    return frames * len(USED) / (time.process_time() - begin)


def _in_fresh_process(work: Callable[..., None], *arguments: Any) -> Memory:
    """Memory of work in a fresh process with this process's imports."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, arguments))


def _measure(work: Callable[..., None], arguments: tuple[Any, ...]) -> Memory:
    torch.set_num_threads(1)
    base = private_megabytes()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    resident = _status("VmRSS")
    work(*arguments)
    return Memory(base, private_megabytes() - base, _status("VmHWM") - resident)


def _read(folder: str, size: int) -> None:
    """Read random batches of windows of 9 frames, as a worker does."""
    clip = Clip(frames=9, size=(size, size), views=USED)
    data = ShardDataModule(clip, folder, batch_size=8, workers=0, epoch_size=400)
    data.setup("fit")
    for batch in data.train_dataloader():
        del batch


def _convert_long(frames: int) -> None:
    encode_episode(MovingSquares(1, frames, (256, 256), views=USED)[0], VideoEncoding())


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024 / 1e6


def _print_memory(name: str, memory: Memory) -> None:
    bar = _verdict(memory.largest <= _MEGABYTES, "<= 250 MB")
    print(
        f"{name}: {memory.grown:.0f} MB private above {memory.base:.0f} MB of imports, at most "
        f"{memory.largest:.0f} MB {bar}"
    )


def _verdict(good: bool, bar: str) -> str:
    return f"(bar {bar}: {'met' if good else 'MISSED'})"


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
