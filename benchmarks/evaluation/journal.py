"""Journal of a running test's finished trials, so that an interrupted test can be resumed.

Every process appends to a file of its own in the folder of results.json: a line that identifies the test,
then one line per trial. The files are deleted once results.json is written.
"""

import json
import math
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import parse_json
from benchmarks.evaluation.comparison import differences
from benchmarks.evaluation.trial_run import TrialResult
from benchmarks.evaluation.trial_stopping import StopReason
from benchmarks.evaluation.trial_video import TrialVideo
from benchmarks.simulator import Trial

Results = dict[str, dict[str, TrialResult]]  # by arm and trial id
_PATTERN = "trials-*.jsonl"
_FILES = ("mp4", "poster", "first", "recording")  # of a `TrialVideo`, in its order
_TYPES = {"prompt": str, "scene": str, "diagnostics": dict, "error": str | None, "failure": dict | None}


class Journal:
    """The finished trials of a test: those read from its folder, and a file to append further ones to.

    Args:
        folder: of the test's results.
        rank: number of this process.
        identity: everything that a result depends on (protocol, policy, software), as JSON values.

    Attributes:
        finished: results that earlier processes wrote here.
        world: versions of the software that ran their worlds in other processes.

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
                    self._add_finished(line)
                except (KeyError, TypeError, AttributeError, ValueError) as error:
                    why = str(error) if isinstance(error, ValueError) else repr(error)
                    what = f"a line is not as `ai-wam test` wrote it: {why}"
                    raise InvalidValue(f"{path}: {what}; delete the file to begin anew") from error

    def _add_finished(self, line: Mapping[str, Any]) -> None:
        """Take over one finished trial, with a result of every arm."""
        results = {arm: _from_json(entry) for arm, entry in line["arms"].items()}
        (name,) = {result.trial.id for result in results.values()}
        if self.finished and self.finished.keys() != results.keys():
            raise InvalidValue(f"arms {sorted(results)} instead of {sorted(self.finished)}")
        for arm, result in results.items():
            if name in self.finished.setdefault(arm, {}):
                raise InvalidValue(f"the trial {name!r} is listed twice")
            self.finished[arm][name] = result
        self.world = self.world or dict(line["world"])

    def add(self, results: Results, world: Mapping[str, str]) -> None:
        """Append trials that have run in all arms, and flush them to the disk.

        Args:
            results: of those trials.
            world: versions of the software that ran their worlds in other processes.
        """
        lines = [
            {"arms": {arm: _to_json(runs[name]) for arm, runs in results.items()}, "world": dict(world)}
            for name in results["policy"]
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab" if self._begun else "wb") as stream:
            # After a line that a killed process left half written, the next one starts on a new line.
            stream.write(b"\n" if self._begun else _encoded({"test": self._identity}))
            stream.write(b"".join(map(_encoded, lines)))
            stream.flush()
            os.fsync(stream.fileno())
        self._begun = True

    def remove(self, everything: bool) -> None:
        """Delete this process's file, or the files of all processes that ever used the folder."""
        for path in self.path.parent.glob(_PATTERN) if everything else [self.path]:
            path.unlink(missing_ok=True)

    def _checked(self, path: Path) -> list[dict[str, Any]]:
        """The trials' lines of a file of this test."""
        head, *lines = list(_lines(path)) or [{"test": self._identity}]
        if not isinstance(head, dict) or "test" not in head:
            raise InvalidValue(f"{path}: its first line names no test; delete the file to begin anew")
        if found := list(differences(head["test"], self._identity)):
            changes = "\n".join(f"  {name}: {before} before, {now} now" for name, before, now in found)
            raise InvalidValue(
                f"{path}: holds trials of another test that was interrupted:\n{changes}\nfinish it with its "
                "own command, name another folder with --data.out, or delete the file to begin anew"
            )
        return lines


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file; a trial whose line was cut off is missing here, and runs again."""
    for line in path.read_bytes().splitlines():
        try:
            yield parse_json(line.decode(), str(path))
        except (ValueError, RecursionError):
            continue


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _to_json(result: TrialResult) -> dict[str, Any]:
    """A result as JSON values, without commands and generated chunks: its failure is explained already."""
    video = result.video
    plain = {
        field.name: getattr(result, field.name)
        for field in fields(result)
        if field.name not in ("trial", "video", "commands", "generated_chunks")
    }
    encoded = video and {"panels": video.panels, "views": video.views} | {
        name: b64encode(getattr(video, name)).decode() for name in _FILES
    }
    return plain | {"trial": result.trial.id, "video": encoded}


def _check_types(entry: Mapping[str, Any]) -> None:
    if odd := [name for name, kind in _TYPES.items() if not isinstance(entry[name], kind)]:
        raise InvalidValue(f"{entry['trial']!r:.100} has {odd[0]} {entry[odd[0]]!r:.100}")
    numbers = [*entry["diagnostics"].values(), *entry["position_std"]]
    if not all(isinstance(number, float | int) for number in numbers):
        raise InvalidValue(f"{entry['trial']!r:.100} has diagnostics or deviations that are no numbers")


def _from_json(entry: Mapping[str, Any]) -> TrialResult:
    """The inverse of `_to_json`.

    Raises:
        ValueError: values of another type, or out of range.
    """
    _check_types(entry)
    video = entry["video"] and TrialVideo(
        tuple(entry["video"]["panels"]),
        tuple(entry["video"]["views"]),
        *(b64decode(entry["video"][name]) for name in _FILES),
    )
    made = {
        "trial": Trial.from_id(entry["trial"]),
        "video": video,
        "seams": tuple((millimetres, degrees) for millimetres, degrees in entry["seams"]),
        "position_std": tuple(entry["position_std"]),
    }
    result = TrialResult(**{**entry, **made})
    counts = (result.steps, result.chunks, result.invalid_frames, result.unreached_steps)
    if result.stop_reason not in get_args(StopReason) or not all(type(n) is int and n >= 0 for n in counts):
        raise InvalidValue(f"{result.trial.id} ended in {result.stop_reason!r} with the counts {counts}")
    if not 0 <= result.seconds < math.inf:
        raise InvalidValue(f"{result.trial.id} took {result.seconds} seconds")
    return result
