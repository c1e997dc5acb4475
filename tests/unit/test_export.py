"""`ai-wam export`: which episodes and views are written, and that nothing is written elsewhere."""

import errno
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from ai_wam.cli import main
from ai_wam.cli.errors import Ended
from ai_wam.errors import UserError
from ai_wam.video import VideoEncoding
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.export.action_images import ActionImagesWriter
from datamodules.export.episode_choice import chosen_episodes
from datamodules.export.lerobot import LeRobotWriter
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet
from datamodules.sources.action_images import RELEASED

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


@pytest.mark.parametrize(
    "words", [["--episodes=" + "9" * 5000], ["--views=[front,front]"], ["--views=[nope]"]]
)
def test_choices_that_cannot_be_meant(words, shards, tmp_path):
    with pytest.raises(Ended, match=r"^ai-wam export: ") as stop:
        export(shards, tmp_path / "out", "--to=lerobot", *words)
    assert len(str(stop.value)) < 500
    assert not list(tmp_path.iterdir())


def test_a_missing_view_is_said_before_anything_is_encoded(tmp_path, monkeypatch):
    class Some(MovingSquares):
        def __getitem__(self, index):
            return MovingSquares(2, 5, (16, 16), views=("front", "side")[: 2 - index])[index]

    write_shards(Some(2), tmp_path / "some", 2, workers=0, progress=False)
    monkeypatch.setattr(LeRobotWriter, "write", lambda *arguments: pytest.fail("an episode was written"))
    with pytest.raises(Ended, match="episode 'squares-0001' has the views"):
        export(tmp_path / "some", tmp_path / "out", "--to=lerobot", "--views=[side]")


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_a_link_is_not_written_through(name, shards, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept.txt").touch()
    (tmp_path / name).symlink_to("mine" if name == "out.partial" else "nowhere")
    with pytest.raises(Ended, match=r"exists; export into a new|is in the way"):
        export(shards, tmp_path / "out", "--to=lerobot")
    assert (tmp_path / "mine" / "kept.txt").exists()


def test_a_folder_that_no_export_began_is_not_deleted(shards, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "kept.txt").touch()
    with pytest.raises(Ended, match=r"out\.partial is in the way"):
        export(shards, tmp_path / "out", "--to=lerobot", "--views=[front]")
    assert (tmp_path / "out.partial" / "kept.txt").exists()
    (tmp_path / "out.partial" / ".ai-wam-export").touch()  # of an export that was killed
    export(shards, tmp_path / "out", "--to=lerobot", "--views=[front]")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["data", "meta", "videos"]


WRITERS = {"lerobot": LeRobotWriter, "action_images": ActionImagesWriter}
PROVENANCE = {
    "confidence that is text": ("lerobot", {"confidence": "abc"}, "got 'abc'"),
    "confidence of two frames": ("lerobot", {"confidence": [1, 1]}, r"got \[1, 1\]"),
    "confidence that is an object": ("lerobot", {"confidence": {}}, r"got \{\}"),
    "a list as the release": ("action_images", {RELEASED: [1]}, "expected an object"),
    "a list as views": ("action_images", {RELEASED: {"views": []}}, "expected an object"),
    "a number as actions": ("action_images", {RELEASED: {"actions.npy": 3}}, "cannot be read"),
    "no base64": ("action_images", {RELEASED: {"actions.npy": "x"}}, "cannot be read"),
    "a long task": ("action_images", {"task": "x" * 1000}, "1000 bytes"),
}


@pytest.mark.parametrize("kind", PROVENANCE)
def test_provenance_of_another_kind(kind, tmp_path):
    to, provenance, words = PROVENANCE[kind]
    episode = replace(SQUARES[0], provenance=provenance)
    with pytest.raises(UserError, match=words):
        WRITERS[to](tmp_path, VideoEncoding()).write(episode)


@pytest.mark.parametrize("variation", [-5, True, 1.5, "a"])
def test_a_variation_that_is_no_number_gets_a_free_one(variation, tmp_path):
    writer = ActionImagesWriter(tmp_path, VideoEncoding())
    writer.write(replace(SQUARES[0], provenance={"task": "push", "variation": variation}))
    assert [path.name for path in (tmp_path / "push").iterdir()] == ["variation0"]


def test_what_a_library_refuses_names_the_episode(shards, tmp_path, monkeypatch):
    def refuses(*arguments):
        raise OverflowError("Python int too large to convert to C long")

    monkeypatch.setattr(LeRobotWriter, "write", refuses)
    with pytest.raises(Ended, match=r"episode 'squares-0000' of .* cannot be written: OverflowError"):
        export(shards, tmp_path / "out", "--to=lerobot")


def test_a_shard_that_cannot_be_read_is_named_and_not_the_new_folder(shards, tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.pread", fails)
    with pytest.raises(Ended, match=r"Input/output error; copy this file again: .*shard-000000\.tar"):
        export(shards, tmp_path / "out", "--to=lerobot")
    assert not list(tmp_path.iterdir())
