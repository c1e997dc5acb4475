"""`ai-wam test` on the command line: one trial again, and trials over ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_processes import on_two_ranks

from ai_wam.cli import main

TRIALS = 5
RULES = "--data.benchmark.init_args.protocol"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one process."""
    folder = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        evaluate(folder, "one", run=partial(in_this_process, patch))
    return folder


def in_this_process(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["ai-wam"])
    main(words)


def console(folder: Path, *words: str) -> str:
    """The installed command."""
    command = str(Path(sys.executable).with_name("ai-wam"))
    done = subprocess.run([command, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def evaluate(folder: Path, out: str, *more: str, run: Callable[..., object]) -> dict:
    simulator = "--model.policy.simulator"
    words = ["--model=tasks.fixed_policy.FixedPolicy", "--model.policy=benchmarks.policies.Expert"]
    words += [f"{simulator}=benchmarks.simulators.tabletop.simulator.Tabletop", f"{simulator}.rig=framed"]
    words += ["--model.policy.tokenizer=ai_wam.action_images.ActionImageTokenizer"]
    words += ["--model.policy.horizon=4", "--data=configs/benchmark/reach_target_receding.yaml"]
    words += [f"{RULES}.trials_per_task={TRIALS}", f"{RULES}.max_seconds=2.0", f"--data.out={out}"]
    words += ["--data.videos=1", "--trainer.logger=false", "--trainer.accelerator=cpu", "--seed_everything=0"]
    run(folder, "test", *words, *more)
    return results(folder, out)


def results(folder: Path, out: str) -> dict:
    """Everything but when it was written."""
    content = json.loads((folder / out / "results.json").read_text())
    del content["created"]
    return content


def test_five_trials_on_two_ranks_give_the_results_of_one_process(place: Path):
    def on_ranks(folder: Path, *words: str) -> None:
        on_two_ranks(folder, "rank", *words)

    two = evaluate(place, "two", "--trainer.devices=2", "--trainer.strategy=ddp", run=on_ranks)
    assert len(two["trials"]) == TRIALS
    assert {trial["policy"]["stop_reason"] for trial in two["trials"]} == {"success"}
    assert two == results(place, "one")
    assert (place / "two" / "report.html").read_text().count("<video") == 1


def test_one_trial_by_its_id_gives_the_result_of_the_full_run(place: Path, monkeypatch: pytest.MonkeyPatch):
    expected = results(place, "one")["trials"][3]
    alone = evaluate(place, "alone", "--trial", expected["id"], run=partial(in_this_process, monkeypatch))
    assert alone["trials"] == [expected]


@pytest.mark.parametrize("workers", [2, pytest.param(TRIALS + 1, marks=pytest.mark.slow)])
def test_ray_workers_give_the_results_of_one_process(
    place: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    out, run = f"ray{workers}", partial(in_this_process, monkeypatch)
    assert evaluate(place, out, f"--ray={workers}", run=run) == results(place, "one")
    assert (place / out / "report.html").read_text().count("<video") == 1
    assert sorted(path.name for path in (place / out).iterdir()) == ["report.html", "results.json"]


@pytest.mark.slow
def test_a_ray_worker_that_dies_is_started_again_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    doubles = Path(__file__).parents[1] / "doubles"
    monkeypatch.setenv("PYTHONPATH", f"{doubles}:{os.environ.get('PYTHONPATH', '')}")
    words = ["--model=tasks.fixed_policy.FixedPolicy", "--model.policy=mortal_policy.Mortal"]
    words += [f"--model.policy.grave={tmp_path / 'grave'}"]
    words += ["--data=configs/benchmark/reach_target_receding.yaml", f"--data.out={tmp_path / 'out'}"]
    words += ["--data.trials_per_step=1", "--data.references=false", f"{RULES}.trials_per_task={TRIALS}"]
    words += [f"{RULES}.max_seconds=0.4", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    said = console(tmp_path, "test", *words, "--ray=1")
    assert (tmp_path / "grave").exists()
    assert "resuming: 1 of 5 trials are finished" in said
    assert len(results(tmp_path, "out")["trials"]) == TRIALS


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"pip install 'ai-wam\[ray\]'"):
        main(["test", "--ray=2", "--data.out=x"])
