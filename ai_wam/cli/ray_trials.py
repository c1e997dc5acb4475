"""`ai-wam test --ray N`: the trials of one test, distributed over N workers of a Ray cluster.

Every worker is an ordinary `ai-wam test` of every N-th trial, with a model of its own, so a worker needs what
the command needs: the package, the checkpoint's file and the simulator. With RAY_ADDRESS set they run on that
cluster, otherwise on this machine.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ai_wam.cli.parsing import WordParser
from ai_wam.errors import CannotContinue, InvalidValue
from ai_wam.utils.ray_cluster import ray_cluster
from benchmarks.evaluation.journal import Results
from benchmarks.evaluation.results import assemble
from benchmarks.simulator import Trial
from benchmarks.trial_datamodule import TrialDataModule, write_results
from datamodules.shards.worker_errors import Failure

_RETRIES = 2
_Share = tuple[list[Trial], Results, dict[str, Any]]


def main(words: Sequence[str]) -> None:
    """`--ray N` is taken out of the words, the rest is the worker's command."""
    parser = WordParser(prog="ai-wam test", add_help=False, allow_abbrev=False)
    parser.add_argument("--ray", type=int, required=True)
    parser.add_argument("--data.out", dest="out")
    known, rest = parser.parse_known_args(list(words))
    share_out(rest, known.ray, known.out)


def share_out(words: Sequence[str], workers: int, out: str | None) -> None:
    """Run a test on Ray workers; the files are those of one process.

    Args:
        words: of the command, beginning with "test".
        workers: how many share the trials.
        out: folder of results.json and report.html.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: the workers together did not run every trial exactly once.
    """
    if workers < 1 or out is None:
        raise InvalidValue(
            f"ai-wam test --ray {workers}: give at least one worker, and --data.out for the results' folder"
        )
    folder = str(Path(out).resolve() / "shares")
    with ray_cluster(workers) as ray:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers)
        # A share whose worker dies, or its machine, is started again. A process may run several, one after
        # another, unless they use a GPU, whose memory Ray frees by a process for each.
        share = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)(_caught)
        shares = ray.get([share.remote(list(words), number, workers, folder) for number in range(workers)])
    if failed := [each for each in shares if isinstance(each, Failure)]:
        raise failed[0].error()
    merge(shares, Path(out))
    shutil.rmtree(folder, ignore_errors=True)  # on a cluster it may lie on other machines


def _caught(words: list[str], number: int, workers: int, folder: str) -> _Share | Failure:
    """A share, or the error with all that it was raised from, which Ray's own copy lacks."""
    try:
        return run_share(words, number, workers, folder)
    except Exception as error:
        return Failure.of(error)


def run_share(words: list[str], number: int, workers: int, folder: str) -> _Share:
    """Every n-th trial in this process: all trials of the test, results by arm and id, and their file.

    What it has finished is noted in a folder of its own, so a worker that is started again resumes.
    """
    from ai_wam.cli.training import run

    out = f"--data.out={folder}/{number}"
    share = [f"--data.share={json.dumps([number, workers])}", out, "--trainer.devices=1"]
    data = run([*words, *share]).datamodule
    assert isinstance(data, TrialDataModule)
    return data.trials, data.arms, data.results


def merge(shares: Sequence[_Share], out: Path) -> None:
    """Write the results of all shares as one.

    Raises:
        RuntimeError: a trial that is missing or was run twice.
    """
    trials, _, first = next(share for share in shares if share[1].get("policy"))
    arms: Results = {}
    for _, found, _ in shares:
        for arm, results in found.items():
            known = arms.setdefault(arm, {})
            if twice := sorted(known.keys() & results.keys()):
                raise CannotContinue(f"{arm}: trials {twice[:3]} ({len(twice)}) were run by two workers")
            known.update(results)
    world = first["versions"].get("world")
    drawn = {
        trial["id"]: trial["shift"]
        for *_, found in shares
        for trial in found.get("trials", ())
        if "shift" in trial
    }
    results = assemble(trials, arms, first["protocol"], first["protocol_hash"], first["policy"], world, drawn)
    write_results(out, results, arms["policy"])
