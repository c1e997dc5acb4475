"""Finished trials of a test under way, so that one that was interrupted can go on.

Every process appends to a file of its own beside results.json: a line that says which test this is, then one
line per trial. The files are gone when results.json is there.
"""

import json
import math
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import parse_json
from benchmarks.evaluation.comparison import differences
from benchmarks.evaluation.trial_recording import Recording
from benchmarks.evaluation.trial_run import TrialResult
from benchmarks.evaluation.trial_stopping import StopReason
from benchmarks.simulator import Trial

Results = dict[str, dict[str, TrialResult]]  # by arm and trial id
_PATTERN = "trials-*.jsonl"
_KINDS = {"prompt": str, "scene": str, "diagnostics": dict, "error": str | None, "failure": dict | None}


class Journal:
    """What is finished of a test, and where the rest is noted.

    Args:
        folder: of the test's results.
        rank: number of this process.
        identity: protocol, policy and software, as JSON values: what a result depends on.

    Attributes:
        finished: results that earlier processes left here.
        world: versions of what ran their worlds.

    Raises:
        ValueError: the folder holds the trials of another test.
    """

    def __init__(self, folder: Path, rank: int, identity: Mapping[str, Any]) -> None:
        self.path = folder / f"trials-{rank:05d}.jsonl"
        self.finished: Results = {}
        self.world: dict[str, str] = {}
        self._identity = json.loads(json.dumps(identity))
        self._begun = self.path.exists() and any(_lines(self.path))
        for path in sorted(folder.glob(_PATTERN)):
            for line in self._checked(path):
                try:
                    self._take(line)
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    why = str(error) if isinstance(error, ValueError) else repr(error)
                    what = f"a line is not as `ai-wam test` wrote it: {why}"
                    raise InvalidValue(f"{path}: {what}; delete the file to begin anew") from error

    def _take(self, line: Mapping[str, Any]) -> None:
        """One finished trial, with a result of every arm."""
        results = {arm: _result(told) for arm, told in line["arms"].items()}
        (name,) = {result.trial.id for result in results.values()}
        if self.finished and self.finished.keys() != results.keys():
            raise InvalidValue(f"arms {sorted(results)} instead of {sorted(self.finished)}")
        for arm, result in results.items():
            if name in self.finished.setdefault(arm, {}):
                raise InvalidValue(f"the trial {name!r} stands there twice")
            self.finished[arm][name] = result
        self.world = self.world or dict(line["world"])

    def add(self, results: Results, world: Mapping[str, str]) -> None:
        """Note trials that have run in all arms; what is on disk afterwards survives anything.

        Args:
            results: of those trials.
            world: versions of what ran their worlds.
        """
        lines = [
            {"arms": {arm: _told(runs[name]) for arm, runs in results.items()}, "world": dict(world)}
            for name in results["policy"]
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab" if self._begun else "wb") as stream:
            # Behind a line that a killed process left half written, the next one begins anew.
            stream.write(b"\n" if self._begun else _encoded({"test": self._identity}))
            stream.write(b"".join(map(_encoded, lines)))
            stream.flush()
            os.fsync(stream.fileno())
        self._begun = True

    def remove(self, everything: bool) -> None:
        """Delete this process's file, or those of all that ever shared the folder."""
        for path in self.path.parent.glob(_PATTERN) if everything else [self.path]:
            path.unlink(missing_ok=True)

    def _checked(self, path: Path) -> list[dict[str, Any]]:
        """The trials' lines of a file of this test."""
        head, *lines = list(_lines(path)) or [{"test": self._identity}]
        if not isinstance(head, dict) or "test" not in head:
            raise InvalidValue(f"{path}: its first line names no test; delete the file to begin anew")
        if found := list(differences(head["test"], self._identity)):
            told = "\n".join(f"  {name}: {before} before, {now} now" for name, before, now in found)
            raise InvalidValue(
                f"{path}: holds trials of another test that was interrupted:\n{told}\nfinish it with its own "
                "command, name another folder with --data.out, or delete the file to begin anew"
            )
        return lines


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """What was written as a whole; a trial whose line was cut off has not been noted, and runs again."""
    for line in path.read_bytes().splitlines():
        try:
            yield parse_json(line.decode(), str(path))
        except (ValueError, RecursionError):
            continue


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _told(result: TrialResult) -> dict[str, Any]:
    """A result as JSON values, but for what only explains failures: they are explained."""
    pictures = result.recording
    plain = {
        field.name: getattr(result, field.name)
        for field in fields(result)
        if field.name not in ("trial", "recording", "decoded", "pictured")
    }
    coded = pictures and asdict(replace(pictures, video=b"", poster=b"")) | {
        name: b64encode(getattr(pictures, name)).decode() for name in ("video", "poster")
    }
    return plain | {"trial": result.trial.id, "recording": coded}


def _check_kinds(told: Mapping[str, Any]) -> None:
    if odd := [name for name, kind in _KINDS.items() if not isinstance(told[name], kind)]:
        raise InvalidValue(f"{told['trial']!r:.100} has {odd[0]} {told[odd[0]]!r:.100}")
    numbers = [*told["diagnostics"].values(), *told["position_std"]]
    if not all(isinstance(number, float | int) for number in numbers):
        raise InvalidValue(f"{told['trial']!r:.100} has figures or deviations that are no numbers")


def _result(told: Mapping[str, Any]) -> TrialResult:
    _check_kinds(told)
    pictures = told["recording"]
    recording = pictures and Recording(
        tuple(pictures["panels"]),
        tuple(pictures["views"]),
        b64decode(pictures["video"]),
        b64decode(pictures["poster"]),
    )
    made = {
        "trial": Trial.from_id(told["trial"]),
        "recording": recording,
        "seams": tuple((millimetres, degrees) for millimetres, degrees in told["seams"]),
        "position_std": tuple(told["position_std"]),
    }
    result = TrialResult(**{**told, **made})
    counts = (result.steps, result.plans, result.invalid_frames, result.unreached_steps)
    if result.stop_reason not in get_args(StopReason) or not all(type(n) is int and n >= 0 for n in counts):
        raise InvalidValue(f"{result.trial.id} ended in {result.stop_reason!r} with the counts {counts}")
    if odd := [name for name, kind in _KINDS.items() if not isinstance(getattr(result, name), kind)]:
        raise InvalidValue(f"{result.trial.id} has {odd[0]} {getattr(result, odd[0])!r:.100}")
    if not all(isinstance(n, float | int) for n in (*result.diagnostics.values(), *result.position_std)):
        raise InvalidValue(f"{result.trial.id} has figures or deviations that are no numbers")
    if not 0 <= result.seconds < math.inf:
        raise InvalidValue(f"{result.trial.id} took {result.seconds} seconds")
    return result
