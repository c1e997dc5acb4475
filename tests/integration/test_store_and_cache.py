"""Shards have the same bytes on disk and in a store; a fit finds the cache that the command wrote."""

import sys
from pathlib import Path
from typing import Any

import pytest

from ai_wam.cli import main
from ai_wam.files.atomic import as_path
from ai_wam.types import Clip
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet

SOURCE = MovingSquares(5, 10)


def content(folder: Any) -> dict[str, bytes]:
    """Every file of a folder of shards; the caches beside it are not looked at."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_cache_command_and_the_fit_that_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    write_shards(SOURCE, "data", 2, workers=0, progress=False)
    words = [
        "--config=configs/quickstart.yaml",
        "--data.train=data",
        "--data.val=data",
        "--data.batch_size=2",
    ]
    main(["cache", *words, "--actions"])
    (folder,) = Path("data/caches").iterdir()
    here = content(folder)
    main(["cache", *words, "--actions"])  # nothing is left to be done
    assert content(folder) == here
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    monkeypatch.setattr(sys, "argv", ["ai-wam", "fit", *words, *short, "--trainer.callbacks=[]"])
    main()
    assert f"latents come from {folder} (float16)" in caplog.text


def test_shards_in_a_store(tmp_path: Path):
    write_shards(SOURCE, tmp_path / "here", 2, workers=0, progress=False)
    place = as_path("memory://bucket/shards")
    write_shards(SOURCE, "memory://bucket/shards", 2, workers=0, progress=False)
    assert content(place) == content(tmp_path / "here")
    here, there = ShardSet(tmp_path / "here"), ShardSet("memory://bucket/shards", verify=True)
    assert here.digest == there.digest
    assert (here.images(3, "front", [4, 9]) == there.images(3, "front", [4, 9])).all()
    data = ShardDataModule(Clip(size=(64, 64)), "memory://bucket/shards", batch_size=2, workers=1)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).video.any()  # read in another process
    (place / "shard-000001.json").unlink()
    (place / "index.json").write_text((place / "index.json").read_text().replace("true", "false", 1))
    with pytest.raises(ShardError, match="is unfinished"):
        ShardSet(place)
    write_shards(SOURCE, place, 2, workers=0, progress=False)
    assert content(place) == content(tmp_path / "here")
    place.fs.pipe_file((place / "shard-000000.tar").path, b"cut")
    with pytest.raises(ShardError, match="has 3 bytes, its index says"):
        ShardSet(place)


def test_an_address_without_a_driver_is_named():
    with pytest.raises((ImportError, ValueError), match="nosuch"):
        as_path("nosuch://bucket/shards")
