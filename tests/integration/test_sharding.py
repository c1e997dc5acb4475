"""Sharded training (FSDP2) on two processes: the mathematics of one; a recipe does it in test_recipes.py."""

from pathlib import Path

from command_processes import finished, start
from sharded_step import main

TINY = sorted(map(str, (Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml")))


def test_two_processes_compute_what_one_does(tmp_path: Path):
    store = str(tmp_path / "store")
    ranks = {tmp_path / f"{rank}.txt": rank for rank in range(2)}
    for printed in finished({file: start(file, main, rank, store, TINY) for file, rank in ranks.items()}):
        assert printed.count("of the parameters") == len(TINY)
