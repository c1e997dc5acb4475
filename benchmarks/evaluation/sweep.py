"""A sweep: one policy tested under a list of shifts, and its file `sweep.json`, to resume and to compare."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import write_json
from ai_wam.files.json_yaml import read_json, read_yaml
from benchmarks.evaluation.provenance import content_hash
from benchmarks.evaluation.results import read_results

FILE = "sweep.json"
_SCHEMA = 1
_KEYS = {"name", "shift", "axis", "at", "unit"}


@dataclass(frozen=True)
class SweepPoint:
    """One test of a sweep.

    Attributes:
        name: unique; letters, digits, "-" and "_", since a folder has it too.
        shift: as in a protocol: parts with their ranges, or the name of a YAML file; None: no shift.
        axis: the quantity that grows along a line of points, such as "azimuth"; None for a point by itself.
        at: the quantity's value here.
        unit: of the value.
    """

    name: str
    shift: Mapping[str, Any] | str | None = None
    axis: str | None = None
    at: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise InvalidValue(
                f"sweep: a point's name is {self.name!r}; give it letters, digits, '-' and '_'"
            )
        if (self.axis is None) != (self.at is None):
            raise InvalidValue(f"sweep: point {self.name!r} needs both `axis` and `at`, or neither")


def read_points(path: Path) -> list[SweepPoint]:
    """The points of a YAML file: a list of mappings with `name`, `shift` and perhaps `axis`, `at`, `unit`.

    Raises:
        ValueError: another form, an unknown key, or a name that comes twice.
    """
    content = read_yaml(path)
    listed = content.get("points") if isinstance(content, Mapping) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(each, Mapping) for each in listed):
        raise InvalidValue(f"{path}: a sweep is `points:` with a list of mappings, each with a `name`")
    for each in listed:
        if unknown := sorted(set(each) - _KEYS) or ("name" not in each):
            raise InvalidValue(f"{path}: point {dict(each)} lacks a `name` or has unknown keys: {unknown}")
    points = [_point(each, path) for each in listed]
    names = [point.name for point in points]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InvalidValue(f"{path}: points {twice} come twice; give each a name of its own")
    return points


def _point(given: Mapping[str, Any], path: Path) -> SweepPoint:
    name, at, shift = str(given["name"]), given.get("at"), given.get("shift")
    if not isinstance(at, int | float | None) or not isinstance(shift, Mapping | str | None):
        raise InvalidValue(
            f"{path}: point {name!r} has at {at!r} and shift {shift!r}; `at` is a number, `shift` a mapping "
            "of parts or the name of a YAML file"
        )
    place = None if at is None else float(at)
    return SweepPoint(name, shift, given.get("axis"), place, str(given.get("unit", "")))


class SweepRecord:
    """What a sweep is and which of its points are finished, kept in a folder.

    Args:
        folder: where `sweep.json` and a folder of results for each point are; made if missing.
        checkpoint: the policy's file.
        words: of the test command, without those of the sweep.
        points: what is tested.

    Raises:
        ValueError: the folder holds another sweep; the message says what differs.
    """

    def __init__(
        self, folder: Path, checkpoint: str, words: Sequence[str], points: Sequence[SweepPoint]
    ) -> None:
        self.folder, self.points = folder, list(points)
        self.identity = {
            "checkpoint_hash": content_hash(checkpoint),
            "words": list(words),
            "points": [_described(point) for point in points],
        }
        self.checkpoint = checkpoint
        self.finished: dict[str, dict[str, Any]] = {}
        if (folder / FILE).is_file():
            known = read_json(folder / FILE)
            if known.get("results"):  # without any, there is nothing that other settings could spoil
                self._check_same(known)
                self.finished = {entry["name"]: entry for entry in known["results"]}

    def place(self, point: SweepPoint) -> Path:
        """The folder of a point's results.json and report.html."""
        return self.folder / point.name

    def finish(self, point: SweepPoint) -> None:
        """Add a point whose results are written."""
        results = read_results(self.place(point) / "results.json")
        self.finished[point.name] = _entry(point, results)
        self.write()

    def write(self) -> None:
        """Write `sweep.json` atomically."""
        write_json(self.folder / FILE, self.content())

    def content(self) -> dict[str, Any]:
        """What `sweep.json` holds: the sweep's identity, and results of its finished points, in order."""
        return {
            "schema": _SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "checkpoint": self.checkpoint,
            **self.identity,
            "results": [self.finished[point.name] for point in self.points if point.name in self.finished],
        }

    def _check_same(self, known: Mapping[str, Any]) -> None:
        differing = [name for name, value in self.identity.items() if known.get(name) != value]
        if not differing:
            return
        what = {
            "checkpoint_hash": f"the checkpoint {known.get('checkpoint')}, not {self.checkpoint}",
            "words": f"the options {known.get('words')}, not {self.identity['words']}",
            "points": "other points",
        }
        raise InvalidValue(
            f"{self.folder / FILE} is a sweep of {' and of '.join(what[name] for name in differing)}; "
            "repeat the command that began it, or give another --out"
        )


def read_sweep(path: Path) -> dict[str, Any]:
    """Content of a finished or interrupted sweep's file.

    Raises:
        ValueError: no such file, or not a sweep's.
    """
    content = read_json(path)
    if content.get("schema") != _SCHEMA or not isinstance(content.get("results"), list):
        raise InvalidValue(f"{path}: it is no {FILE} of this version; give one that `ai-wam sweep` wrote")
    return content


def _described(point: SweepPoint) -> dict[str, Any]:
    return {"name": point.name, "shift": point.shift, "axis": point.axis, "at": point.at, "unit": point.unit}


def _entry(point: SweepPoint, results: Mapping[str, Any]) -> dict[str, Any]:
    """A point's line: rates of all arms, why trials stopped, and what the policy's confidence said."""
    trials = [trial["policy"] for trial in results["trials"]]
    invalid = sum(trial["invalid_frames"] for trial in trials)
    stds = [std for trial in trials for std in trial["position_std"] if std is not None]
    return {
        **_described(point),
        "protocol_hash": results["protocol_hash"],
        "shifted": results["protocol"].get("shift"),
        "mean": results["mean"],
        "mean_interval": results["mean_interval"],
        "low_ceiling": results["low_ceiling"],
        "tasks": {
            name: {arm: task[arm] for arm in results["mean"]} for name, task in results["tasks"].items()
        },
        "stop_reasons": dict(Counter(trial["stop_reason"] for trial in trials)),
        "failures": dict(Counter(trial["failure"]["verdict"] for trial in trials if "failure" in trial)),
        "invalid_frames": invalid,
        "median_position_std_mm": round(1000 * sorted(stds)[len(stds) // 2], 2) if stds else None,
    }
