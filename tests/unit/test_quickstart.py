"""What the quickstart prints about time; its commands run in integration/test_cli.py."""

import re
import sys

import pytest

from ai_wam.cli import quickstart
from ai_wam.cli.quickstart import Spent, machine_speed, where_time_went


def test_minutes_are_summed_by_command():
    each = [("collect", 60.0, 100.0), ("collect", 6.0, 8.0), ("fit", 240.0, 240.0), ("test", 30.0, 30.0)]
    spent = [Spent(*one) for one in each]
    line = "5.6 minutes, 6.3 of processor time: collect 1.1, fit 4.0, test 0.5"
    assert where_time_went(spent) == line


def test_time_of_a_command_counts_its_own_processes(monkeypatch: pytest.MonkeyPatch):
    busy = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    start = quickstart.subprocess.Popen

    def in_its_place(command: list[str], env: dict[str, str]):
        return start([sys.executable, "-c", child], env=env)

    monkeypatch.setattr(quickstart.subprocess, "Popen", in_its_place)
    spent = quickstart.run_step("collect")
    assert spent.command == "collect"
    assert 0.3 <= spent.cpu_seconds < 0.3 + spent.seconds


def test_the_machine_is_measured():
    found = re.fullmatch(r"this machine: one thread multiplies matrices at (\d+) GFLOP/s .*", machine_speed())
    assert found is not None
    assert float(found[1]) > 0
