"""Two policies on the same trials: a paired table, where the rules were the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.statistics import Proportion, mcnemar
from benchmarks.tables import aligned, apart_title, percent

_MISSING = "(absent)"
_HEADER = ["task", "trials", "a", "b", "b - a", "only a", "only b", "p"]


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
        """Cells below `_HEADER`."""
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
    """Two results are comparable: the same rules, simulator, geometry and trials.

    Raises:
        ValueError: they are not; the message names every rule that differs.
    """
    if first["protocol_hash"] != second["protocol_hash"]:
        differing = "\n".join(
            f"  {name}: {a} against {b}" for name, a, b in differences(first["protocol"], second["protocol"])
        )
        raise ValueError(
            f"these results follow different protocols and do not compare:\n{differing}\n"
            "test both checkpoints with one --data file"
        )
    ids = [{trial["id"] for trial in results["trials"]} for results in (first, second)]
    if alone := sorted(ids[0] ^ ids[1]):
        raise ValueError(
            f"one result has {len(ids[0])} trials, the other {len(ids[1])}: {alone[:3]} ({len(alone)}) "
            "are in one of them only; run the same trials with both checkpoints"
        )


def differences(first: Any, second: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names and values of everything that two JSON values do not share."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted({*first, *second}):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(first.get(key, _MISSING), second.get(key, _MISSING), inner)
    elif first != second:
        yield name, first, second


def paired(first: Mapping[str, Any], second: Mapping[str, Any], tasks: Sequence[str]) -> Paired:
    """Outcomes of the named tasks' trials. A trial that the simulator lost counts as not solved."""
    other = {trial["id"]: _solved(trial) for trial in second["trials"]}
    chosen = [trial for trial in first["trials"] if trial["task"] in tasks]
    return Paired(tuple(map(_solved, chosen)), tuple(other[trial["id"]] for trial in chosen))


def comparison_table(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Successes of each task and of all, who alone solved how many, and McNemar's p.

    Tasks whose ceiling is low in either result are listed apart and are not in the sum.

    Args:
        first: content of one results.json, and
        second: of the other.

    Raises:
        ValueError: the two do not compare.
    """
    check_same_protocol(first, second)
    apart = [name for name in first["tasks"] if name in {*first["apart"], *second["apart"]}]
    counted = [name for name in first["tasks"] if name not in apart]
    rows = [_HEADER, *(paired(first, second, [name]).row(name) for name in counted)]
    if counted:
        rows.append(paired(first, second, counted).row("all"))
    lines = [f"{mark}: {_name(results)}" for mark, results in (("a", first), ("b", second))]
    low = [paired(first, second, [name]).row(name) for name in apart]
    table = aligned([*rows, *low])
    lines += ["", *table[: len(rows)]]
    if low:
        lines += ["", apart_title(first["protocol"]), *table[len(rows) :]]
    return "\n".join([*lines, "", *_notes(first, second)])


def _notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    notes = [
        "p: McNemar's exact test, two-sided; only trials that one of the two solved tell them apart",
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
    versions = differences(first["versions"], second["versions"])
    return notes + [f"not the same software: {name} {a} against {b}" for name, a, b in versions]


def _name(results: Mapping[str, Any]) -> str:
    policy = results["policy"]
    return f"{policy['name']}  {policy['checkpoint'] or '(no checkpoint)'}  {results['created']}"


def _solved(trial: Mapping[str, Any]) -> bool:
    return bool(trial["policy"]["outcome"] == "success")
