"""Two runs in one folder, and what is left of a run that was killed."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import command_processes
import pytest
from doubles.slow_squares import SlowSquares

from ai_wam.cli import main
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet

SQUARES = MovingSquares(4, 4, (16, 16))


@pytest.fixture
def begin(tmp_path):
    """Start a slow run, and wait until it is at work; gives the process and the process that reads."""
    begun = []

    def start(workers):
        slow = SlowSquares(4, 4, (16, 16), seconds=30, begun=str(tmp_path))
        printed, folder = tmp_path / "printed.txt", tmp_path / "data"
        begun.append(command_processes.start(printed, write_shards, slow, folder, 2, workers))
        command_processes.wait_until(lambda: list(tmp_path.glob("reader-*")), begun[0])
        return begun[0], int(next(tmp_path.glob("reader-*")).name.removeprefix("reader-"))

    yield start
    for process in begun:
        process.kill()
        process.join()


def test_a_second_run_is_told_and_breaks_nothing(begin, tmp_path):
    process, _ = begin(workers=0)
    partial = tmp_path / "data" / "shard-000000.tar.x.partial"
    partial.write_bytes(b"of the other run")
    with pytest.raises(ShardError, match="another run is writing into this folder; wait for it"):
        write_shards(SQUARES, tmp_path / "data", 2, workers=0, progress=False)
    assert partial.exists()
    process.kill()
    process.join()
    partial.unlink()


def lives(process):
    """Also not as a zombie, which may not have been collected."""
    place = Path("/proc", str(process), "stat")
    return place.exists() and place.read_text().split()[2] != "Z"


def test_workers_end_with_a_killed_parent(begin):
    process, worker = begin(workers=1)
    assert worker != process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    end = time.monotonic() + 10
    while lives(worker):
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.1)


def test_a_failed_recording_leaves_the_folder_to_the_next_one(tmp_path):
    write_shards(SQUARES, tmp_path, 2, workers=0, progress=False)
    with pytest.raises(ShardError, match="holds another data set"):
        write_shards(MovingSquares(5, 4, (16, 16)), tmp_path, 2, workers=0, progress=False)
    write_shards(SQUARES, tmp_path, 2, workers=0, progress=False)
    assert len(ShardSet(tmp_path)) == 4


def test_an_export_that_finds_no_room_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the limit would cut it off for later runs
    write_shards(SQUARES, tmp_path / "data", 2, workers=0, progress=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # as a full disk
    words = ["export", f"--shards={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", "--to=action_images"]
    try:
        with pytest.raises(SystemExit, match=r"File too large: nothing was written; make room .*out'"):
            main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
