"""Trials over ranks, and trials and shards over Ray workers, give the files of one process.

The tests that start a cluster of their own come before those that share one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from command_processes import on_two_ranks
from doubles.fatal_squares import FatalSquares

from ai_wam.cli import main
from ai_wam.cli.errors import sentence
from ai_wam.episodes import Episode
from ai_wam.errors import InvalidValue
from ai_wam.utils.ray_cluster import ray_cluster
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.parallel_writing import Workers

# Ray's own: an idle worker's log file, a note on accelerators, and its monitors' pipes at shutdown.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:Tip. In future versions of Ray")

TESTS = Path(__file__).parents[1]
TRIALS = 5
RULES = "--data.benchmark.init_args.protocol"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one process."""
    folder = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        evaluate(folder, "one", run=partial(in_this_process, patch))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster that jobs connect to, as on several machines, with fewer processors than workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        with ray_cluster(1) as ray, pytest.MonkeyPatch.context() as joining:
            joining.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
            joining.setattr(ray, "shutdown", lambda: None)
            joining.setattr(ray, "init", lambda **_: None)
            yield


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def check_on_ray(place: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    out, run = f"ray{workers}", partial(in_this_process, monkeypatch)
    assert evaluate(place, out, f"--ray={workers}", run=run) == results(place, "one")
    assert (place / out / "report.html").read_text().count("<video") == 1
    assert sorted(path.name for path in (place / out).iterdir()) == [
        "recordings",
        "report.html",
        "results.json",
        "seen.png",
    ]


@pytest.mark.slow
def test_more_ray_workers_than_trials(place: Path, monkeypatch: pytest.MonkeyPatch):
    check_on_ray(place, monkeypatch, TRIALS + 1)


@pytest.mark.slow
def test_a_ray_worker_that_dies_is_started_again_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    words = ["--model=tasks.fixed_policy.FixedPolicy", "--model.policy=doubles.mortal_policy.Mortal"]
    words += [f"--model.policy.grave={tmp_path / 'grave'}"]
    words += ["--data=configs/benchmark/reach_target_receding.yaml", f"--data.out={tmp_path / 'out'}"]
    words += ["--data.trials_per_step=1", "--data.references=false", f"{RULES}.trials_per_task={TRIALS}"]
    words += [f"{RULES}.max_seconds=0.4", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    said = console(tmp_path, "test", *words, "--ray=1")
    assert (tmp_path / "grave").exists()
    assert "resuming: 1 of 5 trials are finished" in said
    assert len(results(tmp_path, "out")["trials"]) == TRIALS


@pytest.mark.usefixtures("cluster")
def test_ray_workers_give_the_results_of_one_process(place: Path, monkeypatch: pytest.MonkeyPatch):
    check_on_ray(place, monkeypatch, 2)


@pytest.mark.usefixtures("cluster")
def test_ray_workers_write_the_same_bytes_also_when_one_dies(tmp_path: Path):
    write_shards(MovingSquares(5, 10), tmp_path / "one", 2, workers=0, progress=False)
    fatal = FatalSquares(5, 10, marker=str(tmp_path / "died"))
    write_shards(fatal, tmp_path / "ray", 2, Workers(ray=2), progress=False)
    assert (tmp_path / "died").exists()
    one, ray = (contents(tmp_path / name) for name in ("one", "ray"))
    for name in ("index.json", "README.md"):  # they name the class of the source
        del one[name], ray[name]
    assert one == ray
    assert len(one) == 6


@pytest.mark.usefixtures("cluster")
def test_an_error_on_a_worker_is_the_users_error(tmp_path: Path):
    @dataclass(frozen=True)
    class Wrong(MovingSquares):
        def __getitem__(self, index: int) -> Episode:
            raise InvalidValue(f"episode {index} cannot be read")

    with pytest.raises(ValueError, match="episode 0 cannot be read") as caught:
        write_shards(Wrong(2, 10), tmp_path / "wrong", 2, Workers(ray=1), progress=False)
    assert sentence(caught.value) == "episode 0 cannot be read"
    assert [path.name for path in (tmp_path / "wrong").iterdir()] == ["index.json"]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"pip install 'ai-wam\[ray\]'"):
        main(["test", "--ray=2", "--data.out=x"])
