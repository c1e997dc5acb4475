"""The benchmark of the shard loader at a tiny size: both loaders read the same pictures."""

from pathlib import Path

import numpy as np

from ai_wam.types import Clip
from ai_wam.video import VideoEncoding
from benchmarks.speed.data import _decode_sought, baseline_rate, conversion_rate, shard_rate, whole_mp4s
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import Recent, ShardSet


def test_the_baselines_decode_what_the_shards_give(tmp_path: Path):
    views = ("front", "left_shoulder", "right_shoulder", "overhead", "wrist")
    source = MovingSquares(2, 12, (32, 32), views=views)
    write_shards(source, tmp_path, 2, workers=0, encoding=VideoEncoding(gop=4), progress=False)
    shards, frames = ShardSet(tmp_path), [2, 6, 11, 11]
    ours = shards.images(1, "wrist", frames)
    for decode in (whole_mp4s, _decode_sought):
        assert np.array_equal(decode(shards.read(1, "wrist.mp4"), frames), ours)
        assert baseline_rate(shards, Clip(frames=3, size=(32, 32)), 2, decode) > 0
    assert shard_rate(str(tmp_path), Clip(frames=3, size=(32, 32)), 8) > 0
    assert conversion_rate(32, 4) > 0


def test_what_is_remembered_has_a_budget():
    recent: Recent[list[int]] = Recent(10, len)
    made = []

    def make(key: int, length: int) -> list[int]:
        made.append(key)
        return [key] * length

    for key in (0, 1, 0, 2):
        recent.get(key, lambda key=key: make(key, 4))
    assert made == [0, 1, 2]
    recent.get(0, lambda: make(0, 4))  # 1 was the one not asked for longest
    assert made == [0, 1, 2]
    recent.get(1, lambda: make(1, 4))
    assert made == [0, 1, 2, 1]
    assert recent.get(9, lambda: make(9, 99)) == recent.get(9, lambda: make(9, 99))  # alone above the budget
    assert made == [0, 1, 2, 1, 9]
