"""Time and memory that the index of a large set costs: as many episodes as DROID, without videos.

Measured in a fresh process: private memory of the main process and of one forked worker that touches every
episode's entry, seconds to the first sample's number, seconds of an epoch's coverage.
"""

import json
import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ai_wam.types import Clip
from datamodules.checks.epoch_coverage import cover
from datamodules.sampling import EpochPlan, EpochSampler
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.format import EpisodeEntry, Member, ShardEntry

VIEWS = ("ext1", "ext2", "wrist", "front")
_PER_SHARD = 600


def write_index(folder: Path, episodes: int, frames: int) -> None:
    """Write the index files of a finished set; its tars are empty files of the right size."""
    names = (*(f"{view}.mp4" for view in VIEWS), "actions.npy", "cameras.npz", "json")
    shards = []
    for number in range(-(-episodes // _PER_SHARD)):
        file = f"shard-{number:06d}.tar"
        rows = range(number * _PER_SHARD, min(episodes, (number + 1) * _PER_SHARD))
        entries = tuple(
            EpisodeEntry(
                f"lab-2023-07-04_12h-34m-56s-{row:08d}",
                file,
                frames + row % 7,
                15.0,
                {view: (180, 320) for view in VIEWS},
                {name: Member(512 + 200_000 * (place + i), 100_000 + i, row) for i, name in enumerate(names)},
            )
            for place, row in zip(range(0, len(rows) * len(names), len(names)), rows, strict=True)
        )
        size = 200_000 * len(rows) * len(names)
        with (folder / file).open("wb") as tar:
            tar.truncate(size)  # a hole, which takes no room
        shard = ShardEntry(file, size, f"{number:064x}", entries)
        shard.write(folder)
        shards.append(shard.summary())
    index = {"schema": 1, "complete": True, "settings": {}, "episodes": episodes, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))


def measure_scale(folder: str) -> Mapping[str, float]:
    """Megabytes (1e6 bytes) and seconds of each step, by name."""
    clip = Clip(frames=9, stride=3, control_hz=15.0, size=(64, 64), views=VIEWS[:2])
    base, begin = private_megabytes(), time.perf_counter()
    data = ShardDataModule(clip, folder, batch_size=8, workers=0)
    dataset = data.train_dataset()
    opened, kept = time.perf_counter() - begin, private_megabytes() - base
    begin = time.perf_counter()
    sampler = EpochSampler(dataset, EpochPlan(dataset.windows_per_set(), None, None, 0), 8, 1, 0)
    rows = iter(sampler)
    list(islice(rows, 8))
    first, walking = time.perf_counter() - begin, private_megabytes() - base
    worker = _in_fork(dataset)
    del rows
    begin = time.perf_counter()
    cover(dataset, sampler.numbers(0).flatten())
    return {
        "seconds to open": opened,
        "MB of the index": kept,
        "seconds to the first number": first,
        "MB while an epoch is walked": walking,
        "MB of a forked worker": worker,
        "seconds of coverage": time.perf_counter() - begin,
    }


def _in_fork(dataset: Any) -> float:
    """Private memory (MB) of a forked child that reads every entry, as a worker does during an epoch."""
    read, write = os.pipe()
    if not (child := os.fork()):
        before = private_megabytes()
        for source in dataset.sets:
            for index in range(len(source)):
                assert source.episodes[index].members
        os.write(write, str(private_megabytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        return float(said.read())


def private_megabytes() -> float:
    """Private memory of this process, MB (1e6 bytes)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6
