"""Ctrl-C and SIGTERM end a command with one line and the status that shells expect; what is done is kept."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_processes import command, start, wait_until

from ai_wam.cli import main
from datamodules.shards.reader import ShardSet

ROOT = Path(__file__).parents[2]
SOURCE = ["--source=doubles.slow_squares.SlowSquares", "--source.episodes=10", "--source.frames=3"]


def stopped(process: ForkServerProcess, output: Path, number: signal.Signals) -> str:
    """Send a signal to a command and its workers, as a terminal does; the last line that they print."""
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert "Traceback" not in output.read_text()
    return output.read_text().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_a_command_is_imported(tmp_path: Path, number: signal.Signals):
    words = ["fit", "--config=configs/quickstart.yaml", f"--data.train={tmp_path}"]
    program = [sys.executable, "-c", "from ai_wam.cli import main; main()", *words]
    process = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(0.6)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines() == ["ai-wam fit: interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_an_import_swallows_every_exception(monkeypatch: pytest.MonkeyPatch, number: signal.Signals):
    begun = []

    def swallowing(name: str) -> SimpleNamespace:
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        return SimpleNamespace(run=begun.append)

    monkeypatch.setattr("ai_wam.cli.import_module", swallowing)
    before = signal.signal(number, signal.SIG_DFL)  # as in a command's own process
    try:
        with pytest.raises(SystemExit) as stop:
            main(["fit"])
    finally:
        signal.signal(number, before)
    assert stop.value.code == 128 + number
    assert begun == []


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_recording_is_resumed(tmp_path: Path, number: signal.Signals, workers: int):
    output, place = tmp_path / "said.txt", tmp_path / "data"
    words = ["collect", *SOURCE, f"--out={place}", "--episodes_per_shard=2", "--source.seconds=0.4"]
    process = start(output, command, tmp_path, [*words, f"--workers={workers}"], {})
    wait_until(lambda: any(place.glob("shard-*.json")), process)
    last = stopped(process, output, number)
    assert "the same command resumes" in last
    before = {file: file.stat().st_mtime_ns for file in place.glob("shard-*.tar")}
    assert 0 < len(before) < 5
    assert not list(place.glob("*.partial"))
    main([*words, "--workers=0"])
    assert len(ShardSet(place)) == 10
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())


def test_an_error_in_a_worker_process_is_one_sentence(tmp_path: Path):
    output = tmp_path / "said.txt"
    words = ["collect", *SOURCE, f"--out={tmp_path / 'out'}", "--source.broken=1", "--workers=1"]
    process = start(output, command, tmp_path, words, {})
    process.join(120)
    assert process.exitcode == 1
    said = output.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "ai-wam collect: episode 1 is broken; record it again"
