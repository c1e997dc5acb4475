"""The card beside the shards, and what a full disk leaves behind."""

import os
import resource
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from ai_wam.episodes import Episode, SourceCard
from ai_wam.video import VideoEncoding
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.data_card import merged
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet
from datamodules.shards.writer import ShardWriter
from datamodules.sources.action_images import ActionImagesLayout
from datamodules.sources.bridge import Bridge
from datamodules.sources.droid import Droid
from datamodules.sources.rlbench import RLBenchDemos


@dataclass(frozen=True)
class Described(MovingSquares):
    """Squares that say where they are from; every second episode has no second view."""

    def __getitem__(self, index: int) -> Episode:
        views = self.views[: 1 + index % 2]
        episode = replace(MovingSquares(**{**vars(self), "views": views}))[index]
        verdict = {"kept": False, "source": "x.json", "why": "the tool is nowhere", "measured": {}}
        origin = {**episode.provenance, "task": "follow", "license": "cc0-1.0"}
        origin["calibration"] = {"wrist": verdict} if index == 1 else {}
        return replace(episode, provenance=origin)


Described.card = SourceCard(title="Squares", homepage="https://example.org", defects=("They are drawn.",))
SOURCE = Described(3, 12, (32, 48), views=("front", "wrist"))


def test_the_card_says_what_is_in_the_shards(tmp_path: Path):
    write_shards(SOURCE, tmp_path / "data", 2, workers=0, progress=False)
    text = (tmp_path / "data" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["pretty_name"] == "Squares"
    assert found["license"] == "cc0-1.0"  # of all episodes
    assert found["size_categories"] == ["n<1K"]
    assert found["ai_wam"]["episodes"] == 3
    assert found["ai_wam"]["frames"] == 12 + 13 + 14
    assert found["ai_wam"]["views"] == ["front", "wrist"]
    for line in (
        "# Squares",
        "3 episodes, 39 frames at 20 Hz",
        "- moving squares (3 episodes)",
        "- home: https://example.org",
        "| front | 3 | 32x48 | 53 to 53 | 0 | 0 |",
        "| wrist | 1 | 32x48 | 53 to 53 | 1 | 0 |",
        "- 'follow': 3",
        "- 'track it': 3",
        "- They are drawn.",
        "## Refused by the source's tests (1)",
        "- 'calibration of wrist: the tool is nowhere': 1",
        "- View `wrist` is missing in 2 episodes.",
        '"episodes_per_shard": 2',
    ):
        assert line in body, line


def test_what_the_user_says_wins_over_the_source(tmp_path: Path):
    card = SourceCard(licence="cc-by-4.0", defects=("blurred",))
    assert merged(card, Described.card) == replace(Described.card, licence="cc-by-4.0", defects=("blurred",))
    assert merged(None, None) == SourceCard()
    with ShardWriter(tmp_path / "stream", card=card) as writer:
        writer.write(MovingSquares(1, 4, actions=False)[0])
    text = (tmp_path / "stream" / "README.md").read_text()
    assert "license: cc-by-4.0" in text
    assert "- blurred" in text
    assert "- 1 of 1 episodes have no actions." in text
    assert "# moving squares" in text


def test_a_full_disk_leaves_whole_shards_and_the_way_on(tmp_path: Path):
    lossless = VideoEncoding(lossless=True)
    source = MovingSquares(6, 12, (64, 64))
    folder = tmp_path / "data"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_all():
        with ShardWriter(folder, 2, encoding=lossless) as writer:
            for index in range(len(source)):
                if index == 3:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # no file may grow further
                writer.write(source[index])

    try:
        with pytest.raises(ShardError, match=r"shard-000001.tar.*'squares-0003' could not .*make room"):
            write_all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(os.listdir(folder)) == ["index.json", "shard-000000.json", "shard-000000.tar"]
    with ShardWriter(folder, 2, encoding=lossless) as writer:
        assert writer.finished == 2
        for index in range(writer.finished, len(source)):
            writer.write(source[index])
    assert len(ShardSet(folder, verify=True)) == 6


def test_a_card_does_not_vouch_for_what_nobody_said(tmp_path: Path):
    write_shards(MovingSquares(2, 12), tmp_path / "data", 2, workers=0, progress=False)
    text = (tmp_path / "data" / "README.md").read_text()
    assert "- None was stated, and the episodes themselves show none." in text
    assert "Refused by" not in text


@pytest.mark.parametrize("source", [RLBenchDemos, ActionImagesLayout, Bridge, Droid])
def test_public_recordings_say_what_they_are(source: type):
    assert source.card.title
    assert source.card.citation
    assert source.card.defects
