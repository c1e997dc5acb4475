"""Caches of latents: used where everything agrees, refused where anything differs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_processes import fork_workers
from lightning import Trainer

from ai_wam.cli.shipped_configs import instantiate
from ai_wam.episodes import Episode
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.clip_dataset import Decode
from datamodules.latent_cache_writer import Caching, write_cache
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.latent_cache import cache_settings
from datamodules.shards.parallel_writing import Workers
from tasks.joint import JointGeneration

CLIP = Clip(frames=9, stride=1, size=(64, 64))
SOURCE = MovingSquares(3, 10)


def task_of(*changes: str) -> JointGeneration:
    return JointGeneration(instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone, *changes), CLIP)


TASK = task_of()


def module(*folders: Path, task: JointGeneration = TASK, **options: object) -> ShardDataModule:
    """A data module whose trainer trains this task."""
    data = ShardDataModule(
        options.pop("clip", CLIP), [str(folder) for folder in folders], workers=0, batch_size=2, **options
    )
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.strategy.connect(task)
    data.setup("fit")
    return data


def cached(folder: Path, workers: int = 0, **options: object) -> Path:
    """Write the cache of a folder."""
    precision, actions = options.pop("precision", "float16"), options.pop("actions", False)
    data = ShardDataModule(options.pop("clip", CLIP), str(folder), workers=0, batch_size=2, **options)
    dataset = data.train_dataset()
    caching = Caching(dataset, TASK, "cpu", 4, 0, precision, actions)
    whole = dataset.decode == "all"
    settings = cache_settings(TASK.encoders(), dataset.sets[0], dataset.windows, whole)
    return Path(str(write_cache(caching, settings, Workers(workers), progress=False)))


def batch_of(data: ShardDataModule):
    return next(iter(data.train_dataloader()))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "shards"
    write_shards(SOURCE, folder, 2, workers=0, progress=False)
    return folder


@pytest.fixture
def shards(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "shards"))


@pytest.mark.parametrize("decode", ["all", "first"])
def test_training_finds_its_cache_and_says_so(shards: Path, decode: Decode, caplog, capsys):
    folder = cached(shards, decode=decode)
    plain, found = (
        batch_of(module(shards, decode=decode, cache="off")),
        batch_of(module(shards, decode=decode)),
    )
    assert plain.encoded is None
    assert found.keys == plain.keys
    assert torch.equal(found.actions, plain.actions)
    truth = TASK.encode_batch(plain, actions=False)
    torch.testing.assert_close(found.encoded.first, truth.first, atol=1e-3, rtol=1e-3)
    assert (found.encoded.video is None) == (decode == "first")
    if truth.video is not None:
        torch.testing.assert_close(found.encoded.video, truth.video, atol=1e-3, rtol=1e-3)
    assert str(folder) in caplog.text + capsys.readouterr().err


def test_a_cache_of_whole_clips_serves_who_wants_first_frames(shards: Path):
    cached(shards)
    assert batch_of(module(shards, decode="first")).encoded is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": task_of("codec.init_args.gain=0.3")}, "gain: 0.25 != 0.3"),
        ({"task": task_of("codec.init_args.temporal_weight=2.0")}, "encoders.codec.weights"),
        ({"clip": replace(CLIP, stride=2)}, "seconds_per_frame: 0.05 != 0.1"),
        ({"clip": replace(CLIP, views=("left_shoulder", "front"))}, "views: "),
        ({"window_every": 3}, "every: 1 != 3"),
        ({"window_least": 2}, "least: 1 != 2"),
        ({"pad": "none"}, "pad: 'hold' != 'none'"),
    ],
)
def test_what_differs_is_never_used_and_named(shards: Path, options: dict, said: str, caplog, capsys):
    cached(shards)
    assert batch_of(module(shards, **options)).encoded is None
    assert said in caplog.text + capsys.readouterr().err


def test_a_cache_of_first_frames_is_not_enough_for_whole_clips(shards: Path):
    cached(shards, decode="first")
    assert batch_of(module(shards)).encoded is None


def test_other_shards_in_the_same_folder_are_not_served(shards: Path, tmp_path: Path):
    folder = cached(shards)
    other = tmp_path / "other"
    write_shards(MovingSquares(3, 11), other, 2, workers=0, progress=False)
    shutil.copytree(folder, other / "caches" / folder.name)
    assert batch_of(module(other)).encoded is None


def test_all_folders_or_none(shards: Path, tmp_path: Path, caplog, capsys):
    cached(shards)
    other = tmp_path / "other"
    write_shards(MovingSquares(3, 11), other, 2, workers=0, progress=False)
    assert batch_of(module(shards, other)).encoded is None
    assert f"{other}: no cache of latents fits" in caplog.text + capsys.readouterr().err
    cached(other)
    assert batch_of(module(shards, other)).encoded is not None


def test_chosen_views_keep_their_latents(shards: Path):
    cached(shards)
    plain, found = (batch_of(module(shards, views_per_sample=1, cache=c)) for c in ("off", "auto"))
    truth = TASK.encode_batch(plain, actions=False)
    torch.testing.assert_close(found.encoded.first, truth.first, atol=1e-3, rtol=1e-3)


class LackingAView:
    """Two episodes, the second of which has one view only."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Episode:
        return (SOURCE if index == 0 else replace(SOURCE, views=("front",)))[index]


def test_a_missing_view_is_zeros(tmp_path: Path):
    write_shards(LackingAView(), tmp_path / "shards", 2, workers=0, progress=False)
    cached(tmp_path / "shards")
    first, masks = set(), []
    for batch in module(tmp_path / "shards").train_dataloader():
        masks += batch.view_mask.tolist()
        first |= {tuple(row.flatten(1).any(dim=1).tolist()) for row in batch.encoded.first}
    assert [True, False] in masks
    assert first == {(True, True), (True, False)}  # views with anything else than zeros


def test_a_view_that_no_episode_has_is_refused(tmp_path: Path):
    write_shards(SOURCE, tmp_path / "shards", 2, workers=0, progress=False)
    clip = replace(CLIP, views=("front", "lefd_shoulder"))
    with pytest.raises(
        ValueError, match=r"'lefd_shoulder', which no .* views are \['front', 'left_shoulder'\]"
    ):
        module(tmp_path / "shards", clip=clip)


def test_action_images_of_a_moving_camera_are_refused(tmp_path: Path):
    clip = replace(CLIP, views=("front", "wrist"))
    write_shards(replace(SOURCE, views=clip.views), tmp_path / "shards", 2, workers=0, progress=False)
    with pytest.raises(ValueError, match=r"camera 'wrist' moves.*two versions.*--actions"):
        cached(tmp_path / "shards", clip=clip, actions=True)
    assert not (tmp_path / "shards" / "caches").exists()
    cached(tmp_path / "shards", clip=clip)
    batch = batch_of(module(tmp_path / "shards", clip=clip, task=JointGeneration(TASK.backbone, clip)))
    assert batch.encoded.video is not None
    assert batch.encoded.action is None


def test_an_interrupted_cache_is_not_used_and_continues(shards: Path, caplog, capsys):
    folder = cached(shards)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "shard-000001.json").unlink()
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "complete": False}))
    assert batch_of(module(shards)).encoded is None
    assert "is unfinished; run the same `ai-wam cache` again" in caplog.text + capsys.readouterr().err
    kept = (folder / "shard-000000.tar").stat().st_mtime_ns
    assert cached(shards) == folder
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_another_process_writes_the_same_bytes(shards: Path, monkeypatch: pytest.MonkeyPatch):
    """Fresh processes, and several at once, are tested in test_shards.py."""
    fork_workers(monkeypatch)
    folder = cached(shards)
    one = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    cached(shards, 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == one


def test_damage_is_named(shards: Path):
    folder = cached(shards)
    path = folder / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-2048])
    with pytest.raises(ShardError, match=r"shard-000000.tar has \d+ bytes.*`ai-wam cache`"):
        module(shards)
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="checksum"):
        module(shards, verify=True)


def test_latents_that_do_not_fit_are_refused(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TASK.backbone.codec, "gain", 1e9)
    with pytest.raises(ValueError, match=r"'first' do not fit into float16; use --precision float32"):
        cached(shards)
    cached(shards, precision="float32")


def test_a_checkpoint_remembers_which_latents_it_saw(shards: Path):
    data = module(shards)
    batch_of(data)
    saved = data.state_dict()
    folder = cached(shards)
    again = module(shards)
    again.load_state_dict(saved)
    with pytest.raises(ValueError, match=rf"latents: None != '{folder.name}'"):
        again.train_dataloader()
    plain = module(shards, cache="off")
    plain.load_state_dict(saved)
    plain.train_dataloader()
