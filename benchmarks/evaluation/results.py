"""What an evaluation leaves behind: one JSON file that says all of it, and the figures in it."""

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

_SCHEMA = 2  # of results.json
_REQUIRED = ("policy", "protocol", "protocol_hash", "mean", "apart", "tasks", "trials", "versions")
_NONE = {"successes": 0, "trials": 0, "rate": None, "interval": None}


def assemble(
    trials: Sequence[Trial],
    arms: Mapping[str, Mapping[str, TrialResult]],
    protocol: Mapping[str, Any],
    protocol_hash: str,
    policy: Mapping[str, Any],
    world: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        trials: every trial of the protocol.
        arms: results by arm and trial id: "policy", and where they were run "ceiling", "floor" and the policy
            by its other decoders.
        protocol: the described rules, and
        protocol_hash: their hash.
        policy: name, configuration and checkpoint of what was tested.
        world: versions of what ran the worlds in processes of their own.

    The means are over tasks, those apart whose ceiling is below the protocol's `min_ceiling` or could not be
    found out; "apart" names them. A mean over no task is None. A trial that the simulator lost counts as not
    solved for policy and floor. It says nothing about the ceiling, nor does one whose scene was not the
    policy's: those are left out there.

    Raises:
        RuntimeError: an arm that has not exactly one result for every trial.
    """
    for arm, results in arms.items():
        check_complete(arm, trials, list(results))
    tasks = list(dict.fromkeys(trial.task for trial in trials))
    summary = {task: _task_summary([trial for trial in trials if trial.task == task], arms) for task in tasks}
    low = _low(summary, list(arms), protocol["min_ceiling"])
    counted = [summary[task] for task in tasks if task not in low]
    return {
        "schema": _SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "policy": dict(policy),
        "protocol": dict(protocol),
        "protocol_hash": protocol_hash,
        "mean": {arm: _mean([figures[arm]["rate"] for figures in counted]) for arm in arms},
        "mean_interval": {arm: _mean_interval([figures[arm] for figures in counted]) for arm in arms},
        "apart": low,
        "tasks": summary,
        "trials": [_trial(trial, arms) for trial in trials],
        "versions": versions() | ({"world": dict(world)} if world else {}),
    }


def read_results(path: str | Path) -> dict[str, Any]:
    """Content of a results.json.

    Raises:
        ValueError: no such file, or not the results of a test of this version, or a protocol that is not the
            hash's.
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
        raise InvalidValue(f"{path}: its protocol is not what its protocol_hash was made of: it was edited")
    try:
        _check_trials(content["trials"], content["tasks"], list(content["mean"]))
        low = _low(content["tasks"], list(content["mean"]), content["protocol"]["min_ceiling"])
        if content["apart"] != low:
            raise InvalidValue(f"`apart` is {content['apart']!r:.100}, by the ceilings of its tasks {low}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = str(error) if isinstance(error, InvalidValue) else f"lacks or misplaces {error!r}"
        raise InvalidValue(
            f"{path}: {why}; give the file as `ai-wam test` wrote it, or test again"
        ) from error
    return content


def _check_trials(
    trials: Sequence[Mapping[str, Any]], tasks: Mapping[str, Mapping[str, Any]], arms: Sequence[str]
) -> None:
    """Every trial stands there once and as it was, and the figures of the tasks are those of their trials.

    Raises:
        ValueError: they are not.
    """
    solved: dict[tuple[str, str], list[bool]] = {(name, arm): [] for name in tasks for arm in arms}
    known = set[str]()
    for entry in trials:
        trial = Trial.from_id(entry["id"])
        if trial.id in known:
            raise InvalidValue(f"the trial {trial.id!r} stands there twice")
        known.add(trial.id)
        if (entry["task"], entry["variation"]) != (trial.task, trial.variation) or trial.task not in tasks:
            raise InvalidValue(f"the trial {trial.id!r} is said to be of another task or variation")
        for arm in arms:
            _check_run(entry[arm], f"the trial {trial.id!r}, {arm},")
            if arm != "ceiling" or _tells(
                entry[arm]["stop_reason"], entry[arm]["scene"], entry["policy"]["scene"]
            ):
                solved[trial.task, arm].append(entry[arm]["outcome"] == "success")
    for (name, arm), outcomes in solved.items():
        figures, rate = tasks[name][arm], sum(outcomes) / len(outcomes) if outcomes else None
        if (figures["trials"], figures["successes"]) != (len(outcomes), sum(outcomes)):
            said = f"{figures['successes']} of {figures['trials']} solved by {arm}"
            raise InvalidValue(f"task {name!r} has {said}, its trials {sum(outcomes)} of {len(outcomes)}")
        if figures["rate"] != rate:
            raise InvalidValue(f"task {name!r} has the rate {figures['rate']} of {arm}, its trials {rate}")


def _check_run(run: Mapping[str, Any], what: str) -> None:
    """Of one arm in one trial."""
    reason, outcome = run["stop_reason"], run["outcome"]
    if reason not in get_args(StopReason) or outcome != outcome_of(reason):
        raise InvalidValue(f"{what} ended in {outcome!r:.100} for the reason {reason!r:.100}")
    if not isinstance(run["scene"], str):
        raise InvalidValue(f"{what} has the scene {run['scene']!r:.100}, expected its fingerprint as text")


def check_complete(arm: str, trials: Sequence[Trial], ids: Sequence[str]) -> None:
    """Exactly one result per trial.

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
            if arm != "ceiling" or _tells(run.stop_reason, run.scene, own.scene)
        ]  # fmt: skip
        summary[arm] = Proportion.of([results[name].success for name in kept]).to_json() if kept else _NONE
    runs = [arms["policy"][trial.id] for trial in trials]
    names = list(dict.fromkeys(name for run in runs for name in run.diagnostics))
    means = {
        name: _mean([run.diagnostics[name] for run in runs if name in run.diagnostics]) for name in names
    }
    reasons = [run.stop_reason for run in runs]
    return {
        **summary,
        "crashes": {
            arm: sum(results[trial.id].stop_reason == "crash" for trial in trials)
            for arm, results in arms.items()
        },
        "other_scenes": sum(not _one_scene(trial.id, arms) for trial in trials),
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


def _tells(reason: str, scene: str, policy_scene: str) -> bool:
    """Whether a run of the ceiling, by its end and its scene, says what the policy could reach in its own."""
    return reason != "crash" and same_scene(scene, policy_scene)


def _one_scene(name: str, arms: Mapping[str, Mapping[str, TrialResult]]) -> bool:
    """Whether every arm of a trial played in the policy's scene, as far as a crash left one."""
    policy = arms["policy"][name].scene
    return not policy.startswith(CHANGED) and all(
        same_scene(results[name].scene, policy) for results in arms.values()
    )


def same_scene(first: str, second: str) -> bool:
    """Whether two fingerprints are of one scene; a trial lost before there was one ("") contradicts none."""
    if "" in (first, second):
        return True
    return first == second and not first.startswith(CHANGED)


def _low(summary: Mapping[str, Mapping[str, Any]], arms: Sequence[str], least: float) -> list[str]:
    """Tasks whose ceiling is below the least one, or could not be found out; none where none was run."""
    rates = {task: figures["ceiling"]["rate"] for task, figures in summary.items() if "ceiling" in arms}
    return [task for task, rate in rates.items() if rate is None or rate < least]


def _mean_interval(figures: Sequence[Mapping[str, Any]]) -> list[float] | None:
    known = [Proportion(one["successes"], one["trials"]) for one in figures if one["trials"]]
    return list(mean_interval(known)) if known else None


def _mean(values: Sequence[float]) -> float | None:
    """Over the trials a figure applies to; None if there is none."""
    finite = [value for value in values if isfinite(value)]
    return sum(finite) / len(finite) if finite else None
