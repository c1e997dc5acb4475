"""The content of results.json: assembled from the results of all trials, read back and checked."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from ai_wam.errors import CannotContinue, InvalidValue
from ai_wam.files.json_yaml import read_json
from benchmarks.evaluation.acting_summary import acting_summary
from benchmarks.evaluation.benchmark import TrialResult
from benchmarks.evaluation.confidence_intervals import Proportion, mean_interval
from benchmarks.evaluation.protocol import digest
from benchmarks.evaluation.provenance import versions
from benchmarks.evaluation.trial_stopping import StopReason, outcome_of
from benchmarks.simulator import CHANGED, Trial

_SCHEMA = 3  # of results.json
_REQUIRED = ("policy", "protocol", "protocol_hash", "mean", "low_ceiling", "tasks", "trials", "versions")
_NO_TRIALS = {"successes": 0, "trials": 0, "rate": None, "interval": None}


def assemble(
    trials: Sequence[Trial],
    arms: Mapping[str, Mapping[str, TrialResult]],
    protocol: Mapping[str, Any],
    protocol_hash: str,
    policy: Mapping[str, Any],
    world: Mapping[str, str] | None = None,
    drawn: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        trials: every trial of the protocol.
        arms: results by arm and trial id: "policy", and where they were run "ceiling", "floor" and the policy
            by its other decoders.
        protocol: its description (`EvaluationProtocol.describe`), and
        protocol_hash: its hash.
        policy: name, configuration and checkpoint of the policy.
        world: versions of the software that ran the worlds in processes of their own.
        drawn: values of the protocol's shift by trial id.

    The means are over tasks, without those whose ceiling is below the protocol's `min_ceiling` or unknown;
    "low_ceiling" names these. A mean over no task is None. A trial that the simulator lost counts as not
    solved for policy and floor. For the ceiling it is left out, as is a trial whose scene was not the
    policy's. A trial whose scene the simulator did not bring back as asked counts in no arm in which that
    happened.

    Raises:
        RuntimeError: an arm that has not exactly one result for every trial.
    """
    for arm, results in arms.items():
        check_complete(arm, trials, list(results))
    tasks = list(dict.fromkeys(trial.task for trial in trials))
    summary = {task: _task_summary([trial for trial in trials if trial.task == task], arms) for task in tasks}
    low = _low_ceiling_tasks(summary, list(arms), protocol["min_ceiling"])
    counted = [summary[task] for task in tasks if task not in low and summary[task]["policy"]["trials"]]
    return {
        "schema": _SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "policy": dict(policy),
        "protocol": dict(protocol),
        "protocol_hash": protocol_hash,
        "mean": {arm: _mean([task[arm]["rate"] for task in counted]) for arm in arms},
        "mean_interval": {arm: _mean_interval([task[arm] for task in counted]) for arm in arms},
        "low_ceiling": low,
        "tasks": summary,
        "trials": [_trial_entry(trial, arms, (drawn or {}).get(trial.id)) for trial in trials],
        "versions": versions() | ({"world": dict(world)} if world else {}),
    }


def read_results(path: str | Path) -> dict[str, Any]:
    """Content of a results.json.

    Raises:
        ValueError: no such file, not the results of a test of this version, or a protocol that does not match
            its hash.
    """
    try:
        content = read_json(Path(path))
    except InvalidValue as error:
        raise InvalidValue(f"{error}; give the results.json that `ai-wam test` wrote") from error
    if content.get("schema") != _SCHEMA:
        raise InvalidValue(
            f"{path}: its schema is {content.get('schema')}, not {_SCHEMA}; give a results.json that this "
            "version's `ai-wam test` wrote, or test again"
        )
    if lacking := [name for name in _REQUIRED if name not in content]:
        raise InvalidValue(f"{path}: lacks {lacking}; give a results.json as `ai-wam test` wrote it")
    if digest(content["protocol"]) != content["protocol_hash"]:
        raise InvalidValue(f"{path}: its protocol does not match its protocol_hash: it was edited")
    try:
        _check_trials(content["trials"], content["tasks"], list(content["mean"]))
        least = content["protocol"]["min_ceiling"]
        low = _low_ceiling_tasks(content["tasks"], list(content["mean"]), least)
        if content["low_ceiling"] != low:
            found = f"{content['low_ceiling']!r:.100}"
            raise InvalidValue(f"`low_ceiling` is {found}, by the ceilings of its tasks {low}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = str(error) if isinstance(error, InvalidValue) else f"lacks or misplaces {error!r}"
        raise InvalidValue(
            f"{path}: {why}; give the file as `ai-wam test` wrote it, or test again"
        ) from error
    return content


def _check_trials(
    trials: Sequence[Mapping[str, Any]], tasks: Mapping[str, Mapping[str, Any]], arms: Sequence[str]
) -> None:
    """Check that every trial is listed once and consistently, and that the tasks' rates match their trials.

    Raises:
        ValueError: the first inconsistency.
    """
    solved: dict[tuple[str, str], list[bool]] = {(name, arm): [] for name in tasks for arm in arms}
    known = set[str]()
    for entry in trials:
        trial = Trial.from_id(entry["id"])
        if trial.id in known:
            raise InvalidValue(f"the trial {trial.id!r} is listed twice")
        known.add(trial.id)
        if (entry["task"], entry["variation"]) != (trial.task, trial.variation) or trial.task not in tasks:
            raise InvalidValue(f"the trial {trial.id!r} has another task or variation than its id")
        for arm in arms:
            _check_run(entry[arm], f"the trial {trial.id!r}, {arm},")
            run = entry[arm]
            if _counts(arm, run["stop_reason"], run["scene"], entry["policy"]["scene"]):
                solved[trial.task, arm].append(entry[arm]["outcome"] == "success")
    for (name, arm), outcomes in solved.items():
        summary, rate = tasks[name][arm], sum(outcomes) / len(outcomes) if outcomes else None
        if (summary["trials"], summary["successes"]) != (len(outcomes), sum(outcomes)):
            stated = f"{summary['successes']} of {summary['trials']} solved by {arm}"
            raise InvalidValue(f"task {name!r} has {stated}, its trials {sum(outcomes)} of {len(outcomes)}")
        if summary["rate"] != rate:
            raise InvalidValue(f"task {name!r} has the rate {summary['rate']} of {arm}, its trials {rate}")


def _check_run(run: Mapping[str, Any], what: str) -> None:
    """Check the entry of one arm in one trial."""
    reason, outcome = run["stop_reason"], run["outcome"]
    if reason not in get_args(StopReason) or outcome != outcome_of(reason):
        raise InvalidValue(f"{what} ended in {outcome!r:.100} for the reason {reason!r:.100}")
    if not isinstance(run["scene"], str):
        raise InvalidValue(f"{what} has the scene {run['scene']!r:.100}, expected its fingerprint as text")


def check_complete(arm: str, trials: Sequence[Trial], ids: Sequence[str]) -> None:
    """Check that there is exactly one result per trial.

    Raises:
        RuntimeError: trials that are missing, foreign or counted twice.
    """
    expected = {trial.id for trial in trials}
    missing, foreign = sorted(expected - set(ids)), sorted(set(ids) - expected)
    if missing or foreign or len(ids) != len(expected):
        raise CannotContinue(
            f"{arm}: {len(ids)} results for {len(expected)} trials; missing {missing[:3]} ({len(missing)}), "
            f"foreign {foreign[:3]} ({len(foreign)}), repeated {len(ids) - len(set(ids))}. Every trial must "
            "run exactly once: to run fewer, lower the protocol's trials_per_task instead of limiting the "
            "trainer's batches"
        )


def _task_summary(trials: Sequence[Trial], arms: Mapping[str, Mapping[str, TrialResult]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for arm, results in arms.items():
        pairs = ((trial.id, results[trial.id], arms["policy"][trial.id]) for trial in trials)
        kept = [
            name for name, run, own in pairs
            if _counts(arm, run.stop_reason, run.scene, own.scene)
        ]  # fmt: skip
        outcomes = [results[name].success for name in kept]
        summary[arm] = Proportion.of(outcomes).to_json() if kept else _NO_TRIALS
    runs = [arms["policy"][trial.id] for trial in trials]
    names = list(dict.fromkeys(name for run in runs for name in run.diagnostics))
    means = {
        name: _mean([run.diagnostics[name] for run in runs if name in run.diagnostics]) for name in names
    }
    reasons = [run.stop_reason for run in runs]
    return {
        **summary,
        "crashes": {
            arm: sum(_crashed(results[trial.id]) for trial in trials) for arm, results in arms.items()
        },
        "changed_scenes": {
            arm: sum(results[trial.id].scene.startswith(CHANGED) for trial in trials)
            for arm, results in arms.items()
        },
        "other_scenes": sum(not _same_scene_in_all_arms(trial.id, arms) for trial in trials),
        "diagnostics": means,
        "stop_reasons": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "mean_seconds": _mean([run.seconds for run in runs]),
        "invalid_frames": sum(run.invalid_frames for run in runs),
        "unreached_steps": sum(run.unreached_steps for run in runs),
        **acting_summary(runs),
    }


def _trial_entry(
    trial: Trial, arms: Mapping[str, Mapping[str, TrialResult]], drawn: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "id": trial.id,
        "task": trial.task,
        "variation": trial.variation,
        "seed": trial.seed,
        "prompt": arms["policy"][trial.id].prompt,
        **({} if drawn is None else {"shift": dict(drawn)}),
        **{arm: results[trial.id].to_json() for arm, results in arms.items()},
    }


def _crashed(run: TrialResult) -> bool:
    """Whether the simulator lost a trial whose scene it had built as asked."""
    return run.stop_reason == "crash" and not run.scene.startswith(CHANGED)


def _counts(arm: str, reason: str, scene: str, policy_scene: str) -> bool:
    """Whether a trial counts in an arm: not in a scene that was not asked for.

    For the ceiling, it must not have crashed and must have run in the policy's scene, too.
    """
    if scene.startswith(CHANGED):
        return False
    return arm != "ceiling" or (reason != "crash" and same_scene(scene, policy_scene))


def _same_scene_in_all_arms(name: str, arms: Mapping[str, Mapping[str, TrialResult]]) -> bool:
    """Whether every arm of a trial that had a scene at all ran in the policy's."""
    policy = arms["policy"][name].scene
    return not policy.startswith(CHANGED) and all(
        same_scene(results[name].scene, policy) for results in arms.values()
    )


def same_scene(first: str, second: str) -> bool:
    """Whether two fingerprints are of one scene; "" (lost before there was a scene) matches every other."""
    if "" in (first, second):
        return True
    return first == second and not first.startswith(CHANGED)


def _low_ceiling_tasks(
    summary: Mapping[str, Mapping[str, Any]], arms: Sequence[str], least: float
) -> list[str]:
    """Tasks whose ceiling is below the least one, or unknown; empty if no ceiling was run."""
    rates = {task: entry["ceiling"]["rate"] for task, entry in summary.items() if "ceiling" in arms}
    return [task for task, rate in rates.items() if rate is None or rate < least]


def _mean_interval(summaries: Sequence[Mapping[str, Any]]) -> list[float] | None:
    known = [Proportion(one["successes"], one["trials"]) for one in summaries if one["trials"]]
    return list(mean_interval(known)) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the finite values; None if there is none."""
    finite = [value for value in values if value is not None and isfinite(value)]
    return sum(finite) / len(finite) if finite else None
