"""The quickstart's commands, and what it prints about time; the commands themselves run in test_cli.py."""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ai_wam.cli import AROUND, MODULES, OWN, main, quickstart
from ai_wam.cli.quickstart import Spent, machine_speed, where_time_went


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """What is run, in the place of running it."""
    ran: list[tuple[str, ...]] = []

    def in_its_place(*words: str, threads: int = 1) -> Spent:
        ran.append(words)
        return Spent(words[0], 60.0, 60.0)

    monkeypatch.setattr(quickstart, "run_step", in_its_place)
    monkeypatch.setattr(quickstart, "_summary", lambda run: None)
    monkeypatch.chdir(tmp_path)
    return ran


def following(words: tuple[str, ...], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def saved(folder: Path, steps: int, done: int, own_end: bool) -> str:
    """A checkpoint after `done` steps of a schedule of `steps`, which ends with the run or was set."""
    (folder / "fit/checkpoints").mkdir(parents=True)
    content = {
        "global_step": done,
        "optimizer_settings": {"lr_scheduler.steps": steps},
        "hyper_parameters": {"lr_scheduler": {"init_args": {"steps": steps if own_end else None}}},
    }
    torch.save(content, folder / "fit/checkpoints/last.ckpt")
    return str(folder / "fit/checkpoints/last.ckpt")


def test_every_option_reaches_the_commands(commands: list[tuple[str, ...]], tmp_path: Path):
    (tmp_path / "own.yaml").touch()
    words = ["--recipe", "own.yaml", "--backbone", "configs/backbone/ltx-tiny.yaml", "--out", "here"]
    numbers = ["--seed", "3", "--steps", "500", "--episodes", "20", "--trials", "7", "--workers", "1"]
    main(["quickstart", *words, *numbers])
    assert [each[0] for each in commands] == ["collect", "collect", "fit", "test", "test"]
    counts = [following(each, "--source.init_args.episodes_per_task") for each in commands[:2]]
    assert counts == ["20", "8"]
    fit, test = commands[2:4]
    assert (following(fit, "--config"), following(fit, "--trainer.max_steps")) == ("own.yaml", "500")
    backbone = following(fit, "--model.backbone")
    assert backbone is not None
    assert Path(backbone).name == "ltx-tiny.yaml"
    assert following(fit, "--seed_everything") == following(fit, "--model.seed") == "3"
    assert following(test, "--ckpt_path") == "here/own-ltx-tiny-seed3/fit/checkpoints/last.ckpt"
    assert following(test, "--data.benchmark.init_args.protocol.trials_per_task") == "7"


@pytest.mark.parametrize(
    ("own_end", "resumed", "refused"), [(False, [750], [500, 1000]), (True, [500, 750, 1000], [250])]
)
def test_a_run_of_another_length_is_refused(
    own_end: bool, resumed: list[int], refused: list[int], commands: list[tuple[str, ...]], tmp_path: Path
):
    """A run that is resumed is compared by `fit` in everything else, a finished one, too."""
    checkpoint = saved(tmp_path / "runs/quickstart/quickstart-seed0", 750, 500, own_end)
    for steps in resumed:
        main(["quickstart", "--steps", str(steps)])
        assert following(commands[-3], "--ckpt_path") == checkpoint.removeprefix(f"{tmp_path}/")
    for steps in refused:
        with pytest.raises(
            SystemExit, match=rf"not {steps}; delete runs/quickstart/quickstart-seed0, or give"
        ):
            main(["quickstart", "--steps", str(steps)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", "-5"], "episodes must be finite and at least 1, got -5"),
        (["--steps", "0"], "steps must be finite and at least 1, got 0"),
        (["--steps", "300"], "--steps 300 must be a multiple of 250"),
        (["--threads", "0"], "threads must be finite and at least 1, got 0"),
        (["--recipe", "no.yaml"], "there is no file 'no.yaml'"),
        (["--backbone", "configs/backbone/wan-tny.yaml"], "there is no file 'configs/backbone/wan-tny.yaml'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    words: list[str], message: str, commands: list[tuple[str, ...]]
):
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(["quickstart", *words])
    assert commands == []


@pytest.mark.parametrize("command", [name for name in OWN if name not in (*AROUND, "serve")])
def test_no_command_has_an_option_that_its_parser_keeps_for_itself(command: str):
    """jsonargparse reads --config as a file of options and never passes it on."""
    name = MODULES.get(command, command).replace("-", "_")
    function = getattr(import_module(f"ai_wam.cli.{name}"), name)
    assert "config" not in inspect.signature(function).parameters


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
