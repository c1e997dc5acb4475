"""Shards have the same bytes from processes and from Ray workers that die, on disk and in a store."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ai_wam.cli import main
from ai_wam.cli.errors import sentence
from ai_wam.episodes import Episode
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import as_path
from ai_wam.types import Clip
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.parallel_writing import Workers
from datamodules.shards.reader import ShardSet

# Ray's own: an idle worker's log file, a note on accelerators, and its monitors' pipes at shutdown.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:Tip. In future versions of Ray")
SOURCE = MovingSquares(5, 10)


def content(folder: Any) -> dict[str, bytes]:
    """Every file of a folder of shards; the caches beside it are not looked at."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@dataclass(frozen=True)
class Fatal(MovingSquares):
    """Squares whose third episode kills the process that draws it, the first time."""

    marker: str = ""

    def __getitem__(self, index: int) -> Episode:
        marker = Path(self.marker)
        if index == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two processors that jobs connect to, as on several machines."""
    import ray

    context = ray.init(num_cpus=2, include_dashboard=False, namespace="tests")
    address = context.address_info["address"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        patch.setattr(ray, "shutdown", lambda: None)
        patch.setattr(ray, "init", lambda **_: None)
        yield address
    ray.shutdown()


def test_ray_workers_write_the_same_bytes_also_when_one_dies(cluster: str, tmp_path: Path):
    write_shards(SOURCE, tmp_path / "one", 2, workers=0, progress=False)
    fatal = Fatal(5, 10, marker=str(tmp_path / "died"))
    write_shards(fatal, tmp_path / "ray", 2, Workers(ray=2), progress=False)
    assert (tmp_path / "died").exists()
    one, ray = content(tmp_path / "one"), content(tmp_path / "ray")
    for name in ("index.json", "README.md"):  # they name the class of the source
        del one[name], ray[name]
    assert one == ray
    assert len(one) == 6


def test_an_error_on_a_worker_is_the_users_error(cluster: str, tmp_path: Path):
    @dataclass(frozen=True)
    class Wrong(MovingSquares):
        def __getitem__(self, index: int) -> Episode:
            raise InvalidValue(f"episode {index} cannot be read")

    with pytest.raises(ValueError, match="episode 0 cannot be read") as caught:
        write_shards(Wrong(2, 10), tmp_path / "wrong", 2, Workers(ray=1), progress=False)
    assert sentence(caught.value) == "episode 0 cannot be read"
    assert [path.name for path in (tmp_path / "wrong").iterdir()] == ["index.json"]


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
