"""`ai-wam quickstart`: collect, train, test and report, each step a command that can be typed."""

import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ai_wam.cli.shipped_configs import own_or_shipped
from ai_wam.errors import CannotContinue, InvalidValue
from ai_wam.files.weights import read_torch
from ai_wam.utils.number_checks import check_numbers
from benchmarks.evaluation.results import read_results

_HELD_OUT, _FEWEST_HELD_OUT = 0.03, 8  # episodes for validation, as a share of `episodes`, and at least
_SAVED_EVERY = 250  # steps, as in configs/quickstart.yaml
_MODES = {
    "one_shot": "configs/benchmark/reach_target.yaml",
    "receding": "configs/benchmark/reach_target_receding.yaml",
}

# Words of a test that needs no GPU and logs nothing beside its results.
ON_CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false")
_RATE = 110  # GFLOP/s of one thread of the machine on which the minutes of docs/quickstart.md were taken


def quickstart(
    out: str = "runs/quickstart",
    episodes: int = 1500,
    steps: int = 1250,
    trials: int = 50,
    seed: int = 0,
    workers: int = 2,
    threads: int = 1,
    recipe: str = "configs/quickstart.yaml",
    backbone: str | None = None,
) -> None:
    """Collect demonstrations, train a policy, test it in closed loop and write the report.

    Every step is an ordinary `ai-wam` command and is printed before it runs. Demonstrations and checkpoints
    in the folder are used again, so an interrupted quickstart resumes where it stopped; tests that were
    finished are repeated.

    Args:
        out: folder for everything that is written.
        episodes: demonstrations to train on.
        steps: optimizer steps.
        trials: unseen scenes to test on.
        seed: of the training; the demonstrations and the scenes do not depend on it.
        workers: processes that collect.
        threads: CPU threads of the training and the tests; two are a little faster on an idle machine, and
            much slower beside other work.
        recipe: what is trained, a YAML file of `ai-wam fit`.
        backbone: another backbone's YAML, such as configs/backbone/cogvideox-tiny.yaml.
    """
    check_numbers("quickstart", at_least=1, episodes=episodes, steps=steps, trials=trials, threads=threads)
    if steps % _SAVED_EVERY:
        raise InvalidValue(f"--steps {steps} must be a multiple of {_SAVED_EVERY}: models are saved there")
    for name in (recipe, backbone):
        if name is not None and not own_or_shipped(name).is_file():
            raise InvalidValue(f"there is no file {name!r}; --recipe and --backbone take YAML files")
    folder, spent = Path(out), []
    counts = {"train": episodes, "val": max(_FEWEST_HELD_OUT, round(_HELD_OUT * episodes))}
    parts = [Path(name).stem for name in (recipe, backbone) if name is not None]
    run = folder / "-".join([*parts, f"seed{seed}"])
    checkpoint = run / "fit" / "checkpoints" / "last.ckpt"
    begun = _begun(checkpoint, steps)
    for split, episodes_of_split in counts.items():
        words = ["--config", "configs/collect/reach_target.yaml", "--source.init_args.split", split]
        words += ["--source.init_args.episodes_per_task", str(episodes_of_split), "--workers", str(workers)]
        spent.append(run_step("collect", *words, "--out", str(folder / "data" / split)))
    words = ["--trainer.max_steps", str(steps), "--seed_everything", str(seed), "--model.seed", str(seed)]
    places = ["--data.train", str(folder / "data" / "train"), "--data.val", str(folder / "data" / "val")]
    log = ["--trainer.logger.init_args.save_dir", str(run), "--data.seed", str(seed)]
    other = [] if backbone is None else ["--model.backbone", backbone]
    again = ["--ckpt_path", str(checkpoint)] if begun else []  # a finished one, too: `fit` compares settings
    spent.append(run_step("fit", "--config", recipe, *words, *places, *log, *other, *again, threads=threads))
    for mode, benchmark in _MODES.items():
        words = ["--ckpt_path", str(checkpoint), "--data", benchmark]
        count = ["--data.benchmark.init_args.protocol.trials_per_task", str(trials)]
        spent.append(
            run_step("test", *words, *count, *ON_CPU, "--data.out", str(run / mode), threads=threads)
        )
    _summary(run)
    print(f"\n{where_time_went(spent)}\n{machine_speed()}")


def _begun(checkpoint: Path, steps: int) -> bool:
    """Whether there is a checkpoint to resume; one of a run of another length is refused."""
    if not checkpoint.is_file():
        return False
    saved = read_torch(checkpoint)
    schedule = saved.get("hyper_parameters", {}).get("lr_scheduler", {}).get("init_args", {})
    if schedule.get("steps", 0) is None:  # it ends with the run
        length = saved["optimizer_settings"]["lr_scheduler.steps"]
    else:  # the run may go on, or end earlier, but not before what is done
        length = max(steps, saved.get("global_step", 0))
    if length != steps:
        raise InvalidValue(
            f"{checkpoint} is of a run of {length} steps, not {steps}; delete {checkpoint.parents[2]}, or "
            "give another --out"
        )
    return True


@dataclass(frozen=True)
class Spent:
    """Time that one command took.

    Attributes:
        command: its name.
        seconds: from its beginning to its end.
        cpu_seconds: of processors, its own processes included.
    """

    command: str
    seconds: float
    cpu_seconds: float


def run_step(*words: str, threads: int = 1) -> Spent:
    """Run one command in a process of its own; its failure ends this one."""
    began, used = time.monotonic(), _of_children()
    print(f"\n$ ai-wam {shlex.join(words)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # -P keeps the working folder off the import path: a stranger's `tasks` folder there must not hide ours.
    program = "from ai_wam.cli import main; main()"
    with subprocess.Popen([sys.executable, "-P", "-c", program, *words], env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the step got Ctrl-C too, and saves what it keeps
            process.wait()
            raise
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise CannotContinue(f"the command above ended with code {code}; run it alone to look closer")
    return Spent(words[0], time.monotonic() - began, _of_children() - used)


def _of_children() -> float:
    """Seconds of processors that ended child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def where_time_went(spent: Sequence[Spent]) -> str:
    """Minutes of the whole and of each kind of command, in one line."""
    whole, cpu = sum(one.seconds for one in spent), sum(one.cpu_seconds for one in spent)
    kinds = dict.fromkeys(one.command for one in spent)
    parts = [f"{kind} {sum(s.seconds for s in spent if s.command == kind) / 60:.1f}" for kind in kinds]
    return f"{whole / 60:.1f} minutes, {cpu / 60:.1f} of processor time: {', '.join(parts)}"


def machine_speed() -> str:
    """How fast one thread of this machine multiplies matrices, so that times can be compared; one line."""
    threads, matrix = torch.get_num_threads(), torch.ones(1024, 1024)
    torch.set_num_threads(1)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    rate = 2 * 1024**3 / min(times) / 1e9
    return (
        f"this machine: one thread multiplies matrices at {rate:.0f} GFLOP/s (that of docs/quickstart.md: "
        f"{_RATE:.0f})"
    )


def _summary(run: Path) -> None:
    """Results in a few lines."""
    print()
    for mode in _MODES:
        results: dict[str, Any] = read_results(run / mode / "results.json")
        for task, row in results["tasks"].items():
            rates = "   ".join(f"{who} {_rate(row[who])}" for who in results["mean"])
            print(f"{task}, {mode}: {rates}")
            print("    " + "   ".join(f"{name} {value:.2f}" for name, value in row["diagnostics"].items()))
        print(f"    report: {run / mode / 'report.html'}")


def _rate(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['successes']}/{row['trials']} [{100 * low:.0f}, {100 * high:.0f}] %"
