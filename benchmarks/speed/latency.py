"""Success and seams where answers come late: `python -m benchmarks.speed.latency [--trials 20]`.

The world goes on while the policy computes: for so many simulated milliseconds the last chunk is carried out,
then the new one takes over, from where it would have been by then (`latency` of the protocol). "Switching"
plans as if nothing happened meanwhile; "chunking" gives the model the committed actions, and the new chunk
takes over behind them. A seam is the jump of the commanded pose from one chunk to the next.
"""

import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli

from ai_wam.cli.load_policy import load_policy
from ai_wam.files.packed_policy import unpack
from ai_wam.types import Clip, Policy
from benchmarks.evaluation.benchmark import Benchmark, TrialResult
from benchmarks.evaluation.confidence_intervals import wilson
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.simulators.tabletop.simulator import Tabletop

_LATENCIES = (0, 50, 100, 200, 500)
_SECONDS = 4.0  # of a trial, as in configs/benchmark/reach_target_chunked.yaml


class Row(NamedTuple):
    """One line of the table."""

    latency_ms: int
    chunking: bool
    successes: int
    trials: int
    seams_mm: list[float]


def packed_policy(folder: Path) -> Any:
    """The policy of `ai-wam demo`."""
    file = folder / "policy.ckpt"
    unpack(Path(str(files("ai_wam.demo"))) / "policy.safetensors", file)
    return load_policy(str(file)).model


def report(
    ckpt_path: str | None = None,
    address: str | None = None,
    trials: int = 20,
    latencies: Sequence[int] = _LATENCIES,
    execute_frames: int = 4,
    prefix: int = 4,
    threads: int = 1,
) -> None:
    """Print the table for `reach_target`.

    Args:
        ckpt_path: the policy; that of `ai-wam demo` if left out.
        address: where the same policy is served, to let the server answer; its clip is the checkpoint's.
        trials: unseen scenes, the same for every row.
        latencies: milliseconds.
        execute_frames: actions carried out between two requests.
        prefix: committed actions of the rows with chunking.
        threads: of the CPU.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = packed_policy(Path(folder)) if ckpt_path is None else load_policy(ckpt_path).model
    clip: Any = model.clip
    policy: Any = model if address is None else _remote(address, clip)
    print(f"reach_target, {trials} trials of {_SECONDS:g} s, {execute_frames} actions of a chunk carried out")
    print(f"{'latency':>8}  {'':<10}{'success':>8}  {'95 %':<12}{'seam mm: mean':>14}{'90 %':>8}{'max':>8}")
    for latency in latencies:
        for committed in (0, prefix):
            row = measured(policy, clip, latency, committed, execute_frames, trials)
            print(line(row))


def measured(policy: Policy, clip: Clip, latency: int, prefix: int, execute_frames: int, trials: int) -> Row:
    """Trials at one latency."""
    protocol = EvaluationProtocol(
        execution="receding",
        execute_frames=execute_frames,
        prefix=prefix,
        latency=latency / 1e3,
        max_seconds=_SECONDS,
        trials_per_task=trials,
        tasks=("reach_target",),
    )
    simulator = Tabletop(rig="framed", image_size=clip.size)
    benchmark = Benchmark(simulator, protocol, parallel=min(10, trials))
    results: list[TrialResult] = benchmark.run(policy, benchmark.trials(), clip)
    benchmark.close()
    seams = [seam[0] for result in results for seam in result.seams]
    return Row(latency, prefix > 0, sum(result.success for result in results), trials, seams)


def line(row: Row) -> str:
    """A row as text."""
    low, high = wilson(row.successes, row.trials)
    kind = "chunking" if row.chunking else "switching"
    seams = np.array(row.seams_mm or [np.nan])
    mean, most, largest = seams.mean(), np.quantile(seams, 0.9), seams.max()
    rate = f"{row.successes}/{row.trials}"
    interval = f"[{100 * low:.0f}, {100 * high:.0f}]"
    return (
        f"{row.latency_ms:>5} ms  {kind:<10}{rate:>8}  {interval:<12}{mean:>14.1f}{most:>8.1f}{largest:>8.1f}"
    )


def _remote(address: str, clip: Clip) -> Policy:
    from benchmarks.remote_policy import RemotePolicy

    remote = RemotePolicy(address, generated=False)
    remote.check_clip(clip)
    return remote


if __name__ == "__main__":
    auto_cli(report, as_positional=False)
