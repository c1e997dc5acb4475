"""What every tiny backbone trains on is the same whether latents are computed or come from a cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ai_wam.canvas import RAY_CHANNELS, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.types import Batch, Clip
from backbones.base import VideoBackbone
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.clip_dataset import ClipDataset, Collate
from datamodules.latent_cache_writer import Caching, write_cache
from datamodules.shards.clip_windows import Windows
from datamodules.shards.convert_source import write_shards
from datamodules.shards.latent_cache import cache_settings, find_cache
from datamodules.shards.parallel_writing import Workers
from datamodules.shards.reader import ShardSet
from tasks.joint import JointGeneration

TINY = sorted((Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml"))
CLIP = Clip(frames=9, stride=1, size=(32, 32))


STILL, MOVING = ("front", "left_shoulder"), ("front", "wrist")
PLANS = ("joint", "labeling", "annotation", "policy", "action_conditioned", "video_only", "cross_view")
CAMERAS = ["camera_encoders=true"]  # an option of Wan's: what such a model is told of cameras is cached too
RIGS = [(file, views, []) for file in TINY for views in (STILL, MOVING)]
RIGS += [(file, views, CAMERAS) for file in TINY if "wan" in file.stem for views in (STILL, MOVING)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "shards"
    views = tuple(dict.fromkeys((*STILL, *MOVING)))
    write_shards(MovingSquares(2, 10, views=views), folder, 1, workers=0, progress=False)
    return folder


def rays(condition: torch.Tensor) -> torch.Tensor:
    return condition[:, :RAY_CHANNELS]


def both(task: JointGeneration, shards: Path, actions: bool, clip: Clip) -> tuple[Batch, Batch]:
    """A batch whose pictures are decoded, and the same one from a cache."""
    source, windows = ShardSet(shards), Windows(clip, "hold", dense=True, every=4)
    plain = ClipDataset([source], windows)
    wanted = cache_settings(task.encoders(), source, windows, video=True)
    write_cache(Caching(plain, task, "cpu", 2, 0, "float32", actions), wanted, Workers(0), progress=False)
    found = find_cache(source, wanted)
    assert found.cache is not None
    kept = ClipDataset([source], windows, caches=[found.cache])
    computed, cached = (Collate(9)([data[i] for i in (0, 4, 3)]) for data in (plain, kept))
    return computed, cached


@pytest.mark.parametrize(("file", "views", "changes"), RIGS, ids=lambda part: getattr(part, "stem", None))
def test_cached_and_computed_canvases_are_equal(
    file: Path, views: tuple[str, ...], changes: list[str], shards: Path
):
    """Also where a camera moves: plans that act must not be told of its future by a cache."""
    clip, still = replace(CLIP, views=views), views == STILL
    task = JointGeneration(instantiate(str(file), VideoBackbone, *changes), clip)
    computed, cached = both(task, shards, still, clip)
    assert cached.encoded is not None
    assert (cached.encoded.action is not None) == still
    assert (cached.encoded.cameras is not None) == (still and bool(changes))
    assert not cached.video.any()
    told = {}
    for name in PLANS:
        a, b = (task.training_canvas(each, plan(name)) for each in (computed, cached))
        told[name] = b.condition
        assert a.segments == b.segments
        for part in ("clean", "given", "counted", "condition", "image", "camera_latents"):
            one, other = getattr(a, part), getattr(b, part)
            if one is None or other is None:
                assert one is other
            else:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=f"{name}: {part}")
    # Equal segments; who acts is told that the camera stays, who is given the actions how it moves.
    assert torch.equal(rays(told["joint"]), rays(told["action_conditioned"])) == still
    contexts = [
        task._context(computed.prompts, each.observation, each.encoded) for each in (computed, cached)
    ]
    if contexts[0].images is not None:
        torch.testing.assert_close(contexts[0].images, contexts[1].images)
    moved = cached.to("cpu").rows([2, 0])
    assert moved.encoded is not None
    torch.testing.assert_close(moved.encoded.first, cached.encoded.first[[2, 0]])
    assert replace(moved, encoded=None).video.shape == (2, 2, 3, 9, *CLIP.size)
