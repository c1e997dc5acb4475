"""Ctrl-C and SIGTERM end a command with one line and the status that shells expect; what is done is kept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_wam.cli import main
from datamodules.shards.reader import ShardSet

ROOT = Path(__file__).parents[2]
SOURCE = ["--source=doubles.slow_squares.SlowSquares", "--source.episodes=10", "--source.frames=3"]


def started(*words: str) -> "subprocess.Popen[str]":
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    program = [sys.executable, "-c", "from ai_wam.cli import main; main()", *words]
    return subprocess.Popen(
        program,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of a command
    )


def stopped(process: "subprocess.Popen[str]", number: signal.Signals, ready: Callable[[], bool]) -> str:
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_a_command_is_imported(tmp_path: Path, number: signal.Signals):
    process = started("fit", "--config=configs/quickstart.yaml", f"--data.train={tmp_path}")
    begun = time.monotonic()
    last = stopped(process, number, lambda: time.monotonic() - begun > 0.6)
    assert last == "ai-wam fit: interrupted"


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_recording_is_resumed(tmp_path: Path, number: signal.Signals, workers: int):
    words = [*SOURCE, f"--out={tmp_path}", "--episodes_per_shard=2"]
    process = started("collect", *words, "--source.seconds=0.4", f"--workers={workers}")
    last = stopped(process, number, lambda: any(tmp_path.glob("shard-*.json")))
    assert "the same command resumes" in last
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("shard-*.tar")}
    assert 0 < len(before) < 5
    assert not list(tmp_path.glob("*.partial"))
    main(["collect", *words, "--source.seconds=0.4", "--workers=0"])
    assert len(ShardSet(tmp_path)) == 10
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())


def test_an_error_in_a_worker_process_is_one_sentence(tmp_path: Path):
    process = started("collect", *SOURCE, f"--out={tmp_path / 'out'}", "--source.broken=1", "--workers=1")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "ai-wam collect: episode 1 is broken; record it again"
