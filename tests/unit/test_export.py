"""`ai-wam export`: which episodes and views are written, and that nothing is written elsewhere."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from ai_wam.cli import main
from ai_wam.video import VideoEncoding
from benchmarks.speed.data import MovingSquares
from datamodules.action_images_layout import RELEASED, ActionImagesWriter
from datamodules.episode_choice import chosen_episodes
from datamodules.lerobot_writer import LeRobotWriter
from datamodules.recording import write_shards
from datamodules.shard_reader import ShardSet

KEYS = [f"squares-{number:04d}" for number in range(4)]
SQUARES = MovingSquares(4, 5, (16, 16), views=("front", "side"))


class Uncalibrated:
    """The side camera's calibration is lost in episode 1."""

    def __len__(self):
        return len(SQUARES)

    def __getitem__(self, index):
        episode = SQUARES[index]
        return replace(episode, frames=map(lost, episode.frames)) if index == 1 else episode


def lost(frame):
    side = replace(frame.views["side"], world_from_camera=np.full((4, 4), np.nan))
    return replace(frame, views={**frame.views, "side": side})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(Uncalibrated(), folder, 4, workers=0, encoding=VideoEncoding(gop=4), progress=False)
    return str(folder)


def export(shards, out, *words):
    main(["export", f"--shards={shards}", f"--out={out}", *words])


@pytest.mark.parametrize("to", ["lerobot", "action_images"])
@pytest.mark.parametrize(
    ("words", "written", "views"),
    [
        (["--views=[front]"], 4, {"front"}),
        (["--views={front: top}", "--episodes=0-1"], 2, {"top"}),
        (["--episodes=[0,2-3]"], 3, {"front", "side"}),
        (["--episodes=squares-0002"], 1, {"front", "side"}),
        (["--episodes=3"], 1, {"front", "side"}),
    ],
)
def test_views_and_episodes_are_chosen(to, words, written, views, shards, tmp_path):
    export(shards, tmp_path / "out", f"--to={to}", *words)
    if to == "lerobot":
        info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
        assert info["total_episodes"] == written
        assert {key.rpartition(".")[2] for key in info["features"] if "images" in key} == views
        return
    names = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("**/camera_names.json")]
    assert len(names) == written
    assert all(set(each.values()) == views for each in names)


@pytest.mark.parametrize("to", ["lerobot", "action_images"])
def test_a_lost_calibration_names_the_ways_out(to, shards, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(shards, tmp_path / "out", f"--to={to}")
    said = capsys.readouterr().err
    assert re.search(r"episode 'squares-0001',( frame 0,)? view 'side': the calibration is lost", said)
    assert "--views" in said
    assert "--episodes" in said
    assert not (tmp_path / "out").exists()


def test_only_the_chosen_videos_are_read(shards):
    frame = next(iter(ShardSet(shards).episode(1, {"front": "top"}).frames))
    assert list(frame.views) == ["top"]
    with pytest.raises(ValueError, match=r"'squares-0001' has the views \['front', 'side'\], `views` asks"):
        ShardSet(shards).episode(1, ["back"])


def test_what_is_a_key_is_no_number():
    assert chosen_episodes("0-1", ["2", "0-1", "1"], "here") == [1]
    assert chosen_episodes([1, "0-1"], ["2", "0-1", "1"], "here") == [2, 1]
    assert chosen_episodes(None, KEYS, "here") == [0, 1, 2, 3]
    assert chosen_episodes("0, 2-3", KEYS, "here") == [0, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (4, "here has the episodes 0 to 3, `episodes` asks for 4"),
        ("2-4", "asks for 2-4"),
        ("3-2", "asks for 3-2"),
        (-1, "has no episode '-1'; it has the keys squares-0000, squares-0001"),
        ("squares", "has no episode 'squares'"),
        ("", "has no episode ''"),
        ([0, KEYS[0]], "one episode twice"),
        ([], "which is none"),
    ],
)
def test_episodes_that_are_not_there_are_named(wanted, message):
    with pytest.raises(ValueError, match=message):
        chosen_episodes(wanted, KEYS, "here")


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp", "..", "", "a\\b"])
def test_nothing_is_written_outside_the_folder(name, tmp_path):
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    episode = SQUARES[0]
    frames = [replace(f, views={name: f.views["front"]}) for f in episode.frames]
    with pytest.raises(ValueError, match=r"a view is called .*, which is a path"):
        LeRobotWriter(folder, VideoEncoding()).write(replace(episode, frames=iter(frames)))
    with pytest.raises(ValueError, match=r"its task is called .*, which is a path"):
        ActionImagesWriter(folder, VideoEncoding()).write(replace(episode, provenance={"task": name}))
    released = {RELEASED: {"views": {"front": name, "side": "view1"}}}
    with pytest.raises(ValueError, match="the folder of view 'front' is called"):
        ActionImagesWriter(folder, VideoEncoding()).write(replace(SQUARES[0], provenance=released))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
