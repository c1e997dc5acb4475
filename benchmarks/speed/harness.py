"""Time and memory of closed-loop evaluation without the model: `python -m benchmarks.speed.harness`.

Prints control steps per CPU-second of the tabletop suite with two cameras of 128 pixels, and how much of a
trial is neither the simulator nor the policy; with `--soak N` the memory before and after N trials; with
`--runs N` whether as many runs of one command print one table. The policy is the suite's own expert, whose
time is not counted. CPU time is of all threads, so other work on the machine hardly shows.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from ai_wam.diffusion.solvers import Sampling
from ai_wam.episodes import Frame
from ai_wam.types import ActionChunk, Clip, Observation, Policy
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import Expert, HoldStill
from benchmarks.report.text_tables import results_table
from benchmarks.simulator import Action, Actions, Simulator, StepResult, Trial
from benchmarks.simulators.tabletop.simulator import Tabletop
from benchmarks.speed.measuring import shipped
from tasks.policy import PolicyControl

_BAR_STEPS = 120.0  # control steps per CPU-second, two cameras of 128 pixels, without the model
_BAR_SHARE = 0.05  # of a trial that is neither simulator nor policy
_BAR_GROWTH = 0.10  # of memory over a soak
_WARM_UP = 40  # trials until caches are full and memory is read for the first time


@dataclass
class Clock:
    """CPU seconds by owner ("simulator" or "policy"). Copies of a metered object share one clock."""

    simulator: float = 0.0
    policy: float = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Clock":
        return self

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        """Add the CPU time inside to an owner."""
        began = time.process_time()
        try:
            yield
        finally:
            setattr(self, owner, getattr(self, owner) + time.process_time() - began)


class MeteredSimulator:
    """A simulator whose calls are timed.

    Args:
        simulator: what is called.
        clock: where the time goes.
    """

    def __init__(self, simulator: Simulator, clock: Clock) -> None:
        self.simulator, self.clock = simulator, clock
        self.control_hz, self.cameras = simulator.control_hz, simulator.cameras

    def tasks(self) -> Mapping[str, int]:
        """As the simulator's."""
        return self.simulator.tasks()

    def reset(self, trial: Trial) -> tuple[str, ...]:
        """As the simulator's."""
        with self.clock.of("simulator"):
            return self.simulator.reset(trial)

    def scene(self) -> str:
        """As the simulator's."""
        return self.simulator.scene()

    def observe(self, views: Sequence[str] | None = None) -> Frame:
        """As the simulator's."""
        with self.clock.of("simulator"):
            return self.simulator.observe(views)

    def pose(self) -> Action:
        """As the simulator's."""
        with self.clock.of("simulator"):
            return self.simulator.pose()

    def step(self, action: Action) -> StepResult:
        """As the simulator's."""
        with self.clock.of("simulator"):
            return self.simulator.step(action)

    def demonstrate(self) -> Actions:
        """As the simulator's."""
        return self.simulator.demonstrate()

    def diagnostics(self) -> Mapping[str, float]:
        """As the simulator's."""
        with self.clock.of("simulator"):
            return self.simulator.diagnostics()

    def versions(self) -> Mapping[str, str]:
        """As the simulator's."""
        return self.simulator.versions()

    def close(self) -> None:
        """As the simulator's."""
        self.simulator.close()


class MeteredPolicy:
    """A policy whose calls are timed.

    Args:
        policy: what is called.
        clock: where the time goes.
    """

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self.policy, self.clock = policy, clock

    def reset(self, episodes: Sequence[str]) -> None:
        """As the policy's."""
        with self.clock.of("policy"):
            self.policy.reset(episodes)

    def predict_action(self, observation: Observation) -> ActionChunk:
        """As the policy's."""
        with self.clock.of("policy"):
            return self.policy.predict_action(observation)


def print_speed(trials: int) -> None:
    """Steps per CPU-second and the harness' share, planning every so many steps."""
    print(f"tabletop suite, two cameras of 128 px, {trials} trials per task, one process, CPU time")
    print(f"  {'':<36}{'steps / s':>10}{'simulator':>11}{'harness':>9}{'with tiny Wan':>15}")
    settings = {
        "as configs/benchmark/tabletop.yaml": (EvaluationProtocol("receding", 8, 12.0, trials), 4),
        "a picture and a plan at every step": (EvaluationProtocol("receding", 1, 12.0, trials), 1),
    }
    for name, (protocol, stride) in settings.items():
        clip = Clip(stride=stride, size=(128, 128))
        steps, simulator, harness, _ = measure(protocol, clip)
        share = harness / (simulator + harness)
        short = replace(protocol, max_seconds=1.0, trials_per_task=1)
        _, *spent = measure(short, clip, tiny_wan(clip))
        whole = spent[1] / sum(spent)
        print(f"  {name:<36}{steps / (simulator + harness):10.0f}{1 - share:11.1%}{share:9.1%}{whole:15.1%}")
    print("  steps, simulator and harness with the expert, whose own time is not counted; with tiny Wan:")
    print("  the harness' share of trials of 1 s with configs/backbone/wan-tiny.yaml, 4 sampling steps")
    print(f"  bars: {_BAR_STEPS:.0f} steps / s, harness at most {_BAR_SHARE:.0%} of a trial with its model")


def tiny_wan(clip: Clip) -> Policy:
    """The smallest model that acts, untrained: what a trial costs does not depend on its weights."""
    return PolicyControl(shipped("wan-tiny"), clip, sampling=Sampling(steps=4)).eval()


def measure(
    protocol: EvaluationProtocol, clip: Clip, policy: Policy | None = None
) -> tuple[int, float, float, float]:
    """Control steps, and CPU seconds in simulator, harness and policy; what is built once is not counted.

    Args:
        protocol: how trials are run.
        clip: views, size and stride.
        policy: what acts; the expert if left out.
    """
    clock = Clock()
    simulator = Tabletop(image_size=clip.size, views=clip.views, control_hz=clip.control_hz)
    benchmark = Benchmark(MeteredSimulator(simulator, clock), protocol, parallel=1)
    horizon = protocol.execute_frames
    expert = Expert(copy.deepcopy(simulator), clip.stride, protocol.max_seconds, horizon)
    metered, trials = MeteredPolicy(policy or expert, clock), benchmark.trials()
    first = {trial.task: trial for trial in reversed(trials)}
    benchmark.run(metered, list(first.values()), clip)
    clock.simulator = clock.policy = 0.0
    began = time.process_time()
    steps = sum(run.steps for run in benchmark.run(metered, trials, clip))
    spent = time.process_time() - began
    benchmark.close()
    expert.close()
    return steps, clock.simulator, spent - clock.simulator - clock.policy, clock.policy


def print_soak(trials: int, warm_up: int = _WARM_UP) -> None:
    """Memory before and after many trials of every task."""
    clip = Clip(size=(128, 128))
    simulator = Tabletop(image_size=clip.size, views=clip.views)
    before, after = soak(simulator, trials, clip, warm_up=warm_up)
    print(f"soak: {before:.0f} MB after {warm_up} trials, {after:.0f} MB after {trials} more")
    print(f"  growth {after / before - 1:+.1%}, bar {_BAR_GROWTH:.0%}; every 20th trial was recorded")


def soak(
    simulator: Simulator, trials: int, clip: Clip, tasks: tuple[str, ...] = (), warm_up: int = _WARM_UP
) -> tuple[float, float]:
    """Megabytes of this process and all that it started, after the warm-up and after the trials.

    Args:
        simulator: prototype of the four worlds that run.
        trials: how many, all tasks in turn; every 20th is recorded.
        clip: views, size and rate.
        tasks: names of the tasks; all of the simulator's if empty.
        warm_up: trials until caches are full.
    """
    count = len(tasks or simulator.tasks())
    protocol = EvaluationProtocol("receding", 8, 2.0, -(-(trials + warm_up) // count), tasks)
    benchmark = Benchmark(simulator, protocol, parallel=4)
    drawn = benchmark.trials()
    mixed = [drawn[i] for task in range(protocol.trials_per_task) for i in _every(drawn, task, protocol)]
    benchmark.run(HoldStill(), mixed[:warm_up], clip, videos={trial.id for trial in mixed[:8]})
    before = _resident()
    for start in range(warm_up, warm_up + trials, 20):
        part = mixed[start : start + 20]
        benchmark.run(HoldStill(), part, clip, videos={part[0].id})
    after = _resident()
    benchmark.close()
    return before, after


def print_runs(runs: int, trials: int) -> None:
    """Whether one command prints one table, whatever run it is."""
    with tempfile.TemporaryDirectory() as folder:
        found = [_run(Path(folder) / str(number), trials) for number in range(runs)]
    print("\n".join(f"  {line}" for line in results_table(found[0]).splitlines()))
    tables = len({results_table(content) for content in found})
    files = len({json.dumps(content, sort_keys=True) for content in found})
    print(f"{runs} runs of one command: {tables} table, {files} results file but for the date (bar: 1 and 1)")


def _run(out: Path, trials: int) -> dict[str, Any]:
    words = ["--model", "tasks.fixed_policy.FixedPolicy", "--model.policy", "benchmarks.policies.Expert"]
    words += ["--model.policy.simulator", "benchmarks.simulators.tabletop.simulator.Tabletop"]
    words += ["--model.policy.tokenizer", "ai_wam.action_images.ActionImageTokenizer"]
    words += [
        "--model.clip.size=[128,128]",
        "--data",
        "configs/benchmark/tabletop.yaml",
        "--data.out",
        str(out),
    ]
    words += ["--data.benchmark.init_args.protocol.trials_per_task", str(trials), "--data.videos=1"]
    words += ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    program = "from ai_wam.cli import main; main()"
    command = [sys.executable, "-c", program, "test", *words]
    subprocess.run(command, check=True, capture_output=True, cwd=out.parent)  # it writes config.yaml there
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    del content["created"]
    return content


def _every(drawn: Sequence[Trial], number: int, protocol: EvaluationProtocol) -> range:
    """Indices of the trials of this number, one of every task."""
    return range(number, len(drawn), protocol.trials_per_task)


def _resident() -> float:
    """Megabytes of memory that this process and its descendants hold."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            parents[int(path.parent.name)] = int(path.read_text().rsplit(") ", 1)[1].split()[1])
    family, fresh = set[int](), {os.getpid()}
    while fresh:
        family |= fresh
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - family
    pages = 0
    for pid in family:
        with suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(trials: int = 5, soak: int = 0, runs: int = 0) -> None:
    """Print every table.

    Args:
        trials: per task, of the timed ones and of each run.
        soak: trials of the soak; 0 leaves it out.
        runs: of one command, compared; 0 leaves them out.
    """
    if trials:
        print_speed(trials)
    if soak:
        print_soak(soak)
    if runs:
        print_runs(runs, trials)


if __name__ == "__main__":
    auto_cli(report, as_positional=False)
