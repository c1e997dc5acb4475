"""Shards of moving squares, which several test files write and load."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ai_wam.episodes import EpisodeSource
from ai_wam.types import Batch, Clip
from ai_wam.video import VideoEncoding
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards

SOURCE = MovingSquares(episodes=4, frames=12, size=(32, 32), views=("front", "wrist"))
CLIP = Clip(frames=3, stride=4, control_hz=20.0, size=(32, 32), views=("front", "wrist"))
WINDOWS = 12 + 13 + 14 + 12


def record(source: EpisodeSource, folder: Path) -> str:
    write_shards(source, folder, 2, workers=0, encoding=VideoEncoding(lossless=True), progress=False)
    return str(folder)


def module(folder: str, clip: Clip = CLIP, **arguments: Any) -> ShardDataModule:
    data = ShardDataModule(clip, folder, **{"batch_size": 4, "workers": 0, **arguments})
    data.setup("fit")
    return data


def keys(loader: DataLoader[Batch]) -> list[str]:
    return [key for batch in loader for key in batch.keys]
