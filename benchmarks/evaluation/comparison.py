"""Two policies on the same trials: a paired table, where the rules were the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from ai_wam.errors import InvalidValue
from benchmarks.evaluation.confidence_intervals import Proportion
from benchmarks.evaluation.results import same_scene
from benchmarks.report.text_tables import aligned, low_ceiling_title, percent, policy_name

_MISSING = "(absent)"
HEADER = ["task", "trials", "a", "b", "b - a", "only a", "only b", "p"]


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test on paired outcomes of the same trials.

    Only pairs that differ count: under the null hypothesis each is won by either side with probability 1/2.

    Raises:
        ValueError: the two sides have different numbers of trials.
    """
    if len(first) != len(second):
        raise InvalidValue(
            f"mcnemar: {len(first)} outcomes against {len(second)}; the test pairs the same trials, "
            "so both sides need all of them in the same order"
        )
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


@dataclass(frozen=True)
class Paired:
    """Outcomes of two policies on the same trials, in the same order.

    Attributes:
        first: whether the first policy solved each trial.
        second: the same of the second.
    """

    first: tuple[bool, ...]
    second: tuple[bool, ...]

    @property
    def only_first(self) -> int:
        """Trials that the first alone solved."""
        return sum(a and not b for a, b in zip(self.first, self.second, strict=True))

    @property
    def only_second(self) -> int:
        """Trials that the second alone solved."""
        return sum(b and not a for a, b in zip(self.first, self.second, strict=True))

    @property
    def p(self) -> float:
        """Two-sided p-value of McNemar's exact test."""
        return mcnemar(self.first, self.second)

    def row(self, name: str) -> list[str]:
        """Cells below `HEADER`."""
        a, b = Proportion.of(self.first), Proportion.of(self.second)
        return [
            name,
            str(a.trials),
            f"{a.successes} ({percent(a.rate)})",
            f"{b.successes} ({percent(b.rate)})",
            f"{100 * (b.rate - a.rate):+.0f}",
            str(self.only_first),
            str(self.only_second),
            f"{self.p:.3g}",
        ]


def check_same_protocol(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse results that are not comparable: other rules, simulator, geometry or trials.

    Raises:
        ValueError: the message names every rule that differs, or says that no scene is shared.
    """
    if first["protocol_hash"] != second["protocol_hash"]:
        differing = "\n".join(
            f"  {name}: {a} against {b}" for name, a, b in differences(first["protocol"], second["protocol"])
        )
        raise InvalidValue(
            f"these results follow different protocols and do not compare:\n{differing}\n"
            "test both checkpoints with one --data file"
        )
    ids = [{trial["id"] for trial in results["trials"]} for results in (first, second)]
    if alone := sorted(ids[0] ^ ids[1]):
        raise InvalidValue(
            f"one result has {len(ids[0])} trials, the other {len(ids[1])}: {alone[:3]} ({len(alone)}) "
            "are in one of them only; run the same trials with both checkpoints"
        )
    foreign = sum(map(len, unpaired(first, second).values()))
    if foreign == len(ids[0]):
        raise InvalidValue(
            f"the scenes of all {foreign} trials differ, so nothing is paired: the simulator drew others in "
            "each run (docs/rlbench.md); compare the rates of the two with their intervals"
        )


def unpaired(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, set[str]]:
    """Ids of the trials, by task, whose scenes are not the same on both sides."""
    other = {trial["id"]: trial["policy"]["scene"] for trial in second["trials"]}
    found: dict[str, set[str]] = {}
    for trial in first["trials"]:
        if not same_scene(trial["policy"]["scene"], other[trial["id"]]):
            found.setdefault(trial["task"], set()).add(trial["id"])
    return found


def differences(first: Any, second: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names and values of everything that two JSON values do not share."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted({*first, *second}):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(first.get(key, _MISSING), second.get(key, _MISSING), inner)
    elif first != second:
        yield name, first, second


def paired(first: Mapping[str, Any], second: Mapping[str, Any], tasks: Sequence[str]) -> Paired:
    """Outcomes of the named tasks' trials whose scenes are the same on both sides.

    A trial that the simulator lost counts as not solved.
    """
    other = {trial["id"]: _solved(trial) for trial in second["trials"]}
    foreign = unpaired(first, second)
    chosen = [
        trial
        for trial in first["trials"]
        if trial["task"] in tasks and trial["id"] not in foreign.get(trial["task"], ())
    ]
    return Paired(tuple(map(_solved, chosen)), tuple(other[trial["id"]] for trial in chosen))


def comparison_table(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Successes of each task and of all, how many only one side solved, and McNemar's p.

    Tasks whose ceiling is low in either result are listed apart and are not in the sum.

    Args:
        first: content of one results.json, and
        second: of the other.

    Raises:
        ValueError: the two do not compare.
    """
    check_same_protocol(first, second)
    low_ceiling = {*first["low_ceiling"], *second["low_ceiling"]}
    foreign = unpaired(first, second)
    unpairable = [name for name in first["tasks"] if len(foreign.get(name, ())) == _count(first, name)]
    apart = [name for name in first["tasks"] if name in low_ceiling and name not in unpairable]
    counted = [name for name in first["tasks"] if name not in {*apart, *unpairable}]
    rows = [HEADER, *(paired(first, second, [name]).row(name) for name in counted)]
    if counted:
        rows.append(paired(first, second, counted).row("all"))
    lines = [f"{mark}: {_name(results)}" for mark, results in (("a", first), ("b", second))]
    low = [paired(first, second, [name]).row(name) for name in apart]
    table = aligned([*rows, *low])
    lines += ["", *table[: len(rows)]]
    if low:
        lines += ["", low_ceiling_title(first["protocol"]), *table[len(rows) :]]
    return "\n".join([*lines, "", *_notes(first, second)])


def _notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Remarks below the table: the test, crashes, unpaired trials, chunk lengths, versions."""
    notes = [
        "p: McNemar's exact test, two-sided; only trials that exactly one of the two solved count",
        f"protocol {first['protocol_hash'][:16]}",
    ]
    crashes = [
        sum(trial["policy"]["outcome"] == "crash" for trial in results["trials"])
        for results in (first, second)
    ]
    if any(crashes):
        notes.append(
            f"lost to crashes of the simulator, counted as not solved: a {crashes[0]}, b {crashes[1]}"
        )
    if foreign := sum(map(len, unpaired(first, second).values())):
        notes.append(f"{foreign} trials are in no pair: their scenes differ between a and b")
    frames = [results["policy"].get("frames") for results in (first, second)]
    if frames[0] != frames[1]:
        notes.append(f"chunks of different length: a {frames[0]} frames, b {frames[1]}")
    versions = differences(first["versions"], second["versions"])
    return notes + [f"not the same software: {name} {a} against {b}" for name, a, b in versions]


def _count(results: Mapping[str, Any], task: str) -> int:
    return sum(trial["task"] == task for trial in results["trials"])


def _name(results: Mapping[str, Any]) -> str:
    policy = results["policy"]
    return f"{policy_name(policy)}  {policy['checkpoint'] or '(no checkpoint)'}  {results['created']}"


def _solved(trial: Mapping[str, Any]) -> bool:
    return bool(trial["policy"]["outcome"] == "success")
