"""`on_error: skip`: the rest is finished, and what was left out is listed wherever somebody might look."""

import json
from dataclasses import replace

import pytest
import yaml
from command_processes import fork_workers

from ai_wam.cli import main
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet

SQUARES = MovingSquares(7, 4, (16, 24), views=("front",))


class Damaged:
    """Squares of which number 1 cannot be opened, 4 and 5 are malformed."""

    def __len__(self):
        return len(SQUARES)

    def __getitem__(self, index):
        if index == 1:
            raise OSError("traj1/obs_dict.pkl cannot be read")
        episode = SQUARES[index]
        pace = 180 if index in (4, 5) else 1
        return replace(episode, frames=(replace(f, seconds=f.seconds * pace) for f in episode.frames))


class Broken(Damaged):
    """Squares whose program is wrong, not their files."""

    def __getitem__(self, index):
        return super().__getitem__(index) + index


def record(folder, source=None, workers=0, on_error="skip"):
    return write_shards(source or Damaged(), folder, 2, workers, progress=False, on_error=on_error)


def test_the_rest_is_finished_and_the_missing_are_listed(tmp_path):
    index = record(tmp_path)
    assert [(each["index"], each["key"]) for each in index["left_out"]] == [
        (1, None),
        (4, "squares-0004"),
        (5, "squares-0005"),
    ]
    assert index["left_out"][0]["reason"] == "traj1/obs_dict.pkl cannot be read"
    assert "9.0000 s after the first frame" in index["left_out"][1]["reason"]
    shards = ShardSet(tmp_path, verify=True)
    assert [entry.key for entry in shards.episodes] == [f"squares-000{n}" for n in (0, 2, 3, 6)]
    assert [entry.file[:12] for entry in shards.episodes] == [f"shard-00000{n}" for n in (0, 1, 1, 3)]
    assert "## Left out (3)\n\n- episode 1: traj1/obs_dict.pkl cannot" in (tmp_path / "README.md").read_text()


def test_bytes_and_list_depend_on_the_episodes_alone(tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    for name, workers in (("here", 0), ("spread", 2)):
        record(tmp_path / name, workers=workers)
    here, spread = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("here", "spread"))
    assert here == spread


def test_a_recording_that_stopped_continues_with_skip_and_the_list_is_whole(tmp_path):
    record(tmp_path / "whole")
    first = tmp_path / "resumed"
    record(first)
    for name in ("shard-000002.tar", "shard-000002.json"):
        (first / name).unlink()
    begun = {**json.loads((first / "index.json").read_text()), "complete": False, "shards": []}
    (first / "index.json").write_text(json.dumps(begun))
    assert record(first) == json.loads((tmp_path / "whole/index.json").read_text())


def test_by_default_the_first_bad_episode_stops_it(tmp_path):
    with pytest.raises(OSError, match="obs_dict"):
        record(tmp_path, on_error="raise")


def test_a_program_that_is_wrong_is_no_bad_episode(tmp_path):
    with pytest.raises(TypeError):
        record(tmp_path, Broken())


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    class Gone(Damaged):
        def __getitem__(self, index):
            raise ValueError("no such disk")

    with pytest.raises(ShardError, match="all 7 were left out, first no such disk"):
        record(tmp_path, Gone())


def test_the_command_lists_them(tmp_path, capsys, monkeypatch):
    import source_fixtures.bridge as fixture

    truth = fixture.write(tmp_path / "raw")
    next((tmp_path / "raw").glob("**/traj10/obs_dict.pkl")).write_bytes(b"cut")
    source = {"class_path": "datamodules.sources.bridge.Bridge", "init_args": truth.init_args}
    (tmp_path / "convert.yaml").write_text(yaml.safe_dump({"source": source, "out": str(tmp_path / "out")}))
    main(["convert", "--config", str(tmp_path / "convert.yaml"), "--workers=0", "--on_error=skip"])
    printed = capsys.readouterr().out
    assert "1 episode, 6 frames" in printed
    assert "left out 1 episode:\n  episode 1: " in printed
    assert "traj10/obs_dict.pkl" in printed
