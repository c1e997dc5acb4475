"""`ai-wam test` on the command line: one trial again, and trials over ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRIALS = 5
RULES = "--data.benchmark.init_args.protocol"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of a few demonstrations, one fitted policy, and its results in one process."""
    folder = tmp_path_factory.mktemp("evaluation")
    words = ["--source.init_args.episodes_per_task=4", "--episodes_per_shard=4", "--workers=0"]
    console(folder, "collect", "--config=configs/collect/reach_target.yaml", "--out=data", *words)
    words = ["--data.train=data", "--data.val=data", "--data.batch_size=2", "--data.workers=0"]
    words += ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    console(folder, "fit", "--config=configs/quickstart.yaml", *words)
    evaluate(folder, "one")
    return folder


def console(folder: Path, *words: str) -> str:
    """The installed command, which Lightning starts again for every rank."""
    command = str(Path(sys.executable).with_name("ai-wam"))
    done = subprocess.run([command, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def evaluate(folder: Path, out: str, *more: str) -> dict:
    (checkpoint,) = folder.rglob("last.ckpt")
    words = [f"--ckpt_path={checkpoint}", "--data=configs/benchmark/reach_target.yaml", f"--data.out={out}"]
    words += [f"{RULES}.trials_per_task={TRIALS}", f"{RULES}.max_seconds=1.6", "--data.record=1"]
    words += ["--data.benchmark.init_args.parallel=1", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    console(folder, "test", *words, *more)
    return results(folder, out)


def results(folder: Path, out: str) -> dict:
    """Everything but when it was written."""
    content = json.loads((folder / out / "results.json").read_text())
    del content["created"]
    return content


def test_five_trials_on_two_ranks_give_the_results_of_one_process(place: Path):
    words = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    two = evaluate(place, "two", *words)
    assert len(two["trials"]) == TRIALS
    assert two == results(place, "one")
    assert (place / "two" / "report.html").read_text().count("<video") == 1


def test_one_trial_by_its_id_gives_the_result_of_the_full_run(place: Path):
    expected = results(place, "one")["trials"][3]
    alone = evaluate(place, "alone", "--trial", expected["id"])
    assert alone["trials"] == [expected]
