"""How fast shards are written and read: `python -m benchmarks.speed.data_rates`.

Prints episodes per second into shards and samples per second out of them, on one core, for small pictures
(64 px, two views, nine frames per clip) by default.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from itertools import product

import torch
from jsonargparse import auto_cli

from ai_wam.errors import CannotContinue
from ai_wam.types import Clip
from ai_wam.video import VideoEncoding
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.clip_dataset import Decode
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards

_BATCH = 32


@dataclass(frozen=True)
class Rates:
    """Samples per second.

    Attributes:
        first: in a first pass, which also reads headers and frame tables.
        later: in the better of two later passes.
        per_cpu_second: in that later pass, per second of this process's own time (of an idle core).
    """

    first: float
    later: float
    per_cpu_second: float


def measure(data: ShardDataModule, samples: int) -> Rates:
    """Read three epochs.

    Args:
        data: set up for "fit".
        samples: number of samples in an epoch.
    """
    loader, rates = data.train_dataloader(), []
    for _ in range(3):
        begin, busy = time.perf_counter(), time.process_time()
        count = sum(len(batch.keys) for batch in loader)
        rates.append((count / (time.perf_counter() - begin), count / (time.process_time() - busy)))
        if count != samples:
            raise CannotContinue(
                f"an epoch gave {count} samples, expected {samples}: choose a multiple of {_BATCH}"
            )
    return Rates(rates[0][0], *max(rates[1:]))


def main(
    size: int = 64,
    frames: int = 40,
    episodes: int = 32,
    clip_frames: int = 9,
    samples: int = 512,
    gop: int = 1,
) -> None:
    """Write shards of moving squares, read them back, print the rates.

    Args:
        size: height and width of recording and clip, pixels.
        frames: frames per episode.
        episodes: episodes written.
        clip_frames: frames per clip.
        samples: samples per measured pass, a multiple of the batch of 32.
        gop: frames between key frames.
    """
    torch.set_num_threads(1)
    source = MovingSquares(episodes, frames, (size, size))
    clip = Clip(frames=clip_frames, stride=4, control_hz=20.0, size=(size, size), views=source.views)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        index = write_shards(source, folder, 16, workers=0, encoding=VideoEncoding(gop=gop), progress=False)
        seconds = time.perf_counter() - begin
        per_frame = index["bytes"] / index["frames"] / len(source.views)
        print(
            f"write: {episodes / seconds:.1f} episodes/s of {frames} frames, {per_frame:.0f} bytes per image"
        )
        modes: tuple[Decode, ...] = ("first", "all")
        for decode, workers in product(modes, (0, 1)):
            data = ShardDataModule(clip, folder, None, _BATCH, workers, decode=decode, epoch_size=samples)
            data.setup("fit")
            rates = measure(data, samples)
            where = "one worker process" if workers else f"{rates.per_cpu_second:.0f} per CPU second"
            print(f"read, decode={decode}: {rates.first:.0f} samples/s, then {rates.later:.0f} ({where})")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load of the machine: {load} on {os.cpu_count()} cores; wall times, so run it alone")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
