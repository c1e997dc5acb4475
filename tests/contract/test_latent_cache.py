"""What every tiny backbone trains on is the same whether latents are computed or come from a cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ai_wam.canvas import plan
from ai_wam.cli.configs import instantiate
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from benchmarks.speed.data import MovingSquares
from datamodules.cache_writer import Caching, write_cache
from datamodules.clip_dataset import ClipDataset, Collate
from datamodules.latent_cache import cache_settings, find_cache
from datamodules.recording import write_shards
from datamodules.shard_jobs import Workers
from datamodules.shard_reader import ShardSet
from datamodules.windows import Windows
from tasks.joint import JointGeneration

TINY = sorted((Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml"))
CLIP = Clip(frames=9, stride=1, size=(64, 64))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "shards"
    write_shards(MovingSquares(2, 10), folder, 1, workers=0, progress=False)
    return folder


@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_cached_and_computed_canvases_are_equal(file: Path, shards: Path):
    task = JointGeneration(instantiate(str(file), VideoBackbone), CLIP)
    source, windows = ShardSet(shards), Windows(CLIP, "hold", dense=True, every=4)
    plain = ClipDataset([source], windows)
    wanted = cache_settings(task.encoders(), source, windows, video=True)
    write_cache(Caching(plain, task, "cpu", 2, 0, "float32", True), wanted, Workers(0), progress=False)
    found = find_cache(source, wanted)
    assert found.cache is not None
    kept = ClipDataset([source], windows, caches=[found.cache])
    computed, cached = (Collate(9)([data[i] for i in (0, 4, 3)]) for data in (plain, kept))
    assert cached.encoded is not None
    assert not cached.video.any()
    for name in ("joint", "labeling", "annotation", "policy", "action_conditioned", "video_only"):
        a, b = (task.training_canvas(each, plan(name)) for each in (computed, cached))
        assert a.segments == b.segments
        for part in ("clean", "given", "counted", "condition", "image", "camera_latents"):
            one, other = getattr(a, part), getattr(b, part)
            if one is None or other is None:
                assert one is other
            else:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=f"{name}: {part}")
    told = [task._context(computed.prompts, each.observation, each.encoded) for each in (computed, cached)]
    if told[0].images is not None:
        torch.testing.assert_close(told[0].images, told[1].images)
    moved = cached.to("cpu").rows([2, 0])
    assert moved.encoded is not None
    torch.testing.assert_close(moved.encoded.first, cached.encoded.first[[2, 0]])
    assert replace(moved, encoded=None).video.shape == (2, 2, 3, 9, 64, 64)
