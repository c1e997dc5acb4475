"""What an evaluation leaves behind: one JSON file that says all of it, and the figures in it."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.acting import acting_summary
from benchmarks.base import Trial
from benchmarks.benchmark import TrialResult
from benchmarks.protocol import digest
from benchmarks.statistics import Proportion

_SCHEMA = 1  # of results.json
_PACKAGES = ("ai-wam", "torch", "lightning", "diffusers", "mujoco", "numpy", "av")


def assemble(
    trials: Sequence[Trial],
    arms: Mapping[str, Mapping[str, TrialResult]],
    protocol: Mapping[str, Any],
    protocol_hash: str,
    policy: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        trials: every trial of the protocol.
        arms: results by arm ("policy" and optionally "ceiling" and "floor") and trial id.
        protocol: the described rules, and
        protocol_hash: their hash.
        policy: name, configuration and checkpoint of what was tested.

    The means are over tasks, those apart whose ceiling is below the protocol's `min_ceiling`; "apart" names
    them. A mean over no task is None.

    Raises:
        RuntimeError: an arm that has not exactly one result for every trial.
    """
    for arm, results in arms.items():
        check_complete(arm, trials, list(results))
    tasks = list(dict.fromkeys(trial.task for trial in trials))
    summary = {task: _task_summary([trial for trial in trials if trial.task == task], arms) for task in tasks}
    low = [task for task in tasks if "ceiling" in arms and _ceiling(summary[task]) < protocol["min_ceiling"]]
    counted = [summary[task] for task in tasks if task not in low]
    return {
        "schema": _SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "policy": dict(policy),
        "protocol": dict(protocol),
        "protocol_hash": protocol_hash,
        "mean": {arm: _mean([figures[arm]["rate"] for figures in counted]) for arm in arms},
        "apart": low,
        "tasks": summary,
        "trials": [_trial(trial, arms) for trial in trials],
        "versions": versions(),
    }


def read_results(path: str | Path) -> dict[str, Any]:
    """Content of a results.json.

    Raises:
        ValueError: no such file, or not the results of a test, or a protocol that is not the hash's.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; give the results.json that `ai-wam test` wrote") from error
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise ValueError(f"{path}: no results of schema {_SCHEMA}; give a results.json of `ai-wam test`")
    if digest(content["protocol"]) != content["protocol_hash"]:
        raise ValueError(f"{path}: its protocol is not what its protocol_hash was made of: it was edited")
    return content


def check_complete(arm: str, trials: Sequence[Trial], ids: Sequence[str]) -> None:
    """Exactly one result per trial.

    Raises:
        RuntimeError: trials that are missing, foreign or counted twice.
    """
    expected = {trial.id for trial in trials}
    missing, foreign = sorted(expected - set(ids)), sorted(set(ids) - expected)
    if missing or foreign or len(ids) != len(expected):
        raise RuntimeError(
            f"{arm}: {len(ids)} results for {len(expected)} trials; missing {missing[:3]} ({len(missing)}), "
            f"foreign {foreign[:3]} ({len(foreign)}), repeated {len(ids) - len(set(ids))}. Every trial must "
            "run exactly once: to run fewer, lower the protocol's trials_per_task instead of limiting the "
            "trainer's batches"
        )


def versions() -> dict[str, str]:
    """Versions of what was at work; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional package, or a checkout that was never installed
            continue
    return found


def _task_summary(trials: Sequence[Trial], arms: Mapping[str, Mapping[str, TrialResult]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for arm, results in arms.items():
        summary[arm] = Proportion.of([results[trial.id].success for trial in trials]).to_json()
    runs = [arms["policy"][trial.id] for trial in trials]
    names = list(dict.fromkeys(name for run in runs for name in run.diagnostics))
    means = {
        name: _mean([run.diagnostics[name] for run in runs if name in run.diagnostics]) for name in names
    }
    reasons = [run.stop_reason for run in runs]
    return {
        **summary,
        "diagnostics": means,
        "stop_reasons": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "mean_seconds": _mean([run.seconds for run in runs]),
        "invalid_frames": sum(run.invalid_frames for run in runs),
        "unreached_steps": sum(run.unreached_steps for run in runs),
        **acting_summary(runs),
    }


def _trial(trial: Trial, arms: Mapping[str, Mapping[str, TrialResult]]) -> dict[str, Any]:
    return {
        "id": trial.id,
        "task": trial.task,
        "variation": trial.variation,
        "seed": trial.seed,
        "prompt": arms["policy"][trial.id].prompt,
        **{arm: results[trial.id].to_json() for arm, results in arms.items()},
    }


def _ceiling(summary: Mapping[str, Any]) -> float:
    return float(summary["ceiling"]["rate"])


def _mean(values: Sequence[float]) -> float | None:
    """Over the trials a figure applies to; None if there is none."""
    finite = [value for value in values if isfinite(value)]
    return sum(finite) / len(finite) if finite else None
