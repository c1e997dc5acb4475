"""One sentence for what was refused on purpose, the traceback for everything else."""

from pathlib import Path

import pytest
import torch
from upath import UPath

from ai_wam.cli import main
from ai_wam.cli.checks import hyperparameters
from ai_wam.cli.errors import SWITCH, one_sentence
from ai_wam.types import Clip
from benchmarks.speed.data import MovingSquares
from datamodules.recording import write_shards
from datamodules.shard_format import ShardError
from datamodules.shard_reader import ShardSet


def test_a_refusal_is_one_sentence():
    with pytest.raises(SystemExit, match=r"^ai-wam inspect: nowhere is not a folder; [^\n]*$"):
        main(["inspect", "nowhere"])


def test_what_wraps_a_refusal_is_left_out():
    def refused() -> None:
        try:
            Clip(frames=1)
        except ValueError as error:
            raise RuntimeError("Problem with given class_path; a dump of a hundred lines") from error

    with pytest.raises(SystemExit, match=r"^ai-wam fit: Clip.*frames must be >= 2"), one_sentence("fit"):
        refused()


def test_a_switch_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(ShardError, match="nowhere"), one_sentence("inspect"):
        ShardSet("nowhere")


@pytest.mark.parametrize("wrong", [lambda: int("x"), lambda: (1).missing, lambda: [].index(1)])
def test_what_nobody_expected_keeps_its_traceback(wrong):
    with pytest.raises((ValueError, AttributeError)), one_sentence("fit"):
        wrong()


@pytest.mark.parametrize(
    ("saved", "decoder"),
    [
        ({"decode_observation": False, "decoder": None}, "geometric"),
        ({"decode_observation": False, "decoder": None, "action_head": {"class_path": "x"}}, "head"),
        ({"decode_observation": True, "decoder": None}, None),
    ],
)
def test_checkpoints_from_before_the_ladder_are_understood(tmp_path: Path, saved: dict, decoder: str | None):
    torch.save({"hyper_parameters": {"_class_path": "x", **saved}}, tmp_path / "old.ckpt")
    found = hyperparameters(str(tmp_path / "old.ckpt"))["init_args"]
    assert "decode_observation" not in found
    assert found["decoder"] == decoder


def test_an_export_that_a_store_does_not_take_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_shards(MovingSquares(1, 5), tmp_path / "shards", 1, workers=0, progress=False)
    place = UPath("memory://export-that-fails")
    put, sent = type(place.fs).put_file, []

    def full(self: object, source: str, target: str, *more: object, **options: object) -> None:
        if sent:
            raise OSError(28, "No space left on device")
        sent.append(target)
        put(self, source, target, *more, **options)

    monkeypatch.setattr(type(place.fs), "put_file", full)
    words = ["--shards", str(tmp_path / "shards"), "--out", str(place), "--to", "action_images"]
    with pytest.raises(SystemExit, match="No space left"):
        main(["export", *words])
    assert sent
    assert not place.exists()
