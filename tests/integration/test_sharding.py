"""Sharded training (FSDP2) on two processes: the mathematics of one; a recipe does it in test_recipes.py."""

import subprocess
import sys
from pathlib import Path

TINY = sorted(map(str, (Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml")))


def test_two_processes_compute_what_one_does(tmp_path: Path):
    script = [sys.executable, str(Path(__file__).with_name("sharded_step.py"))]
    running = [
        subprocess.Popen(
            [*script, str(rank), str(tmp_path / "store"), *TINY],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    for process in running:
        output = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, output
        assert output.count("of the parameters") == len(TINY)
