"""The report of an evaluation: one self-contained page with metrics, protocol, and videos of trials."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.evaluation.trial_video import TrialVideo
from benchmarks.report.acting_tables import acting_tables
from benchmarks.report.text_tables import low_ceiling_title, notes, percent, policy_name

_LIMIT = 29_500_000  # bytes of the page; mail and review tools refuse much more
_RESERVE = 60_000  # of them for the sentence above the videos, headings and crashes' messages between them
_UNITS = ("m", "mm", "rad", "s")
_ERROR, _ERRORS = 300, 20  # characters of a crash's message, and how many are shown
_ARMS = {
    "policy": "policy",
    "ceiling": "the expert's demonstration through the action-image codec and the same controller",
    "floor": "hold still",
    "blind": "the mean demonstration of training scenes, replayed without looking",
    "geometric": "the policy by poses fitted to its action images",
    "head": "the policy by its learned action head",
}
_REASONS = {
    "success": "solved",
    "failed": "goal missed for good",
    "timeout": "out of time",
    "invalid": "too many invalid actions",
    "unreachable": "poses out of reach",
    "crash": "lost to a crash of the simulator",
}
_ORDER = [*list(_REASONS)[1:], "success"]  # of the gallery


class _Headline(NamedTuple):
    """A metric in large type at the top of the page."""

    value: str
    label: str
    kind: str = ""


class _Square(NamedTuple):
    """A trial in the strip of its task, linked to its video if that is shown."""

    trial: str
    reason: str
    title: str
    shown: bool


class _Task(NamedTuple):
    """Success of one task: a summary by arm, a square per trial, counts by stop reason."""

    name: str
    arms: Mapping[str, Mapping[str, Any]]
    squares: Sequence[_Square]
    reasons: Mapping[str, int]


class _Group(NamedTuple):
    """The trials of one stop reason, with cards of those that are shown; crashes have a message, no video."""

    reason: str
    trials: int
    cards: Sequence[Markup]
    errors: Mapping[str, str]


def render(results: Mapping[str, Any], videos: Mapping[str, TrialVideo]) -> str:
    """The report as HTML.

    Args:
        results: content of results.json.
        videos: by trial id; those of failures come first, and the page ends before 30 MB.
    """
    page, values = ENVIRONMENT.get_template("report.html.j2"), _values(results, videos)
    rest = page.render(values, note="", groups=[])
    cards = _cards(results, videos, _LIMIT - _RESERVE - len(rest.encode()))
    return page.render(values, note=_note(results, videos, len(cards)), groups=_groups(results, cards))


def _values(results: Mapping[str, Any], videos: Mapping[str, TrialVideo]) -> dict[str, Any]:
    """The template's values, without those of the gallery."""
    policy = policy_name(results["policy"])
    tasks = {name: _task(name, results, videos) for name in results["tasks"]}
    return {
        "title": f"{policy}: {_percent(results['mean']['policy'])}",
        "policy": policy,
        "lead": _subtitle(results),
        "headline": _headline(results),
        "tasks": [task for name, task in tasks.items() if name not in results["low_ceiling"]],
        "low_ceiling": [tasks[name] for name in results["low_ceiling"]],
        "low_ceiling_title": low_ceiling_title(results["protocol"]),
        "remarks": f"{'. '.join(note[0].upper() + note[1:] for note in notes(results))}.",
        "diagnostics": {name: _diagnostics(summary) for name, summary in results["tasks"].items()},
        "tables": acting_tables(results),
        "filters": _filters(results),
        "protocol": _protocol(results),
        "full": json.dumps(
            {key: results[key] for key in ("policy", "protocol", "protocol_hash", "versions")}, indent=2
        ),
    }


def _subtitle(results: Mapping[str, Any]) -> list[str]:
    protocol = results["protocol"]
    execution = "one shot, open loop"
    if protocol["execution"] == "receding":
        execution = f"receding horizon, {protocol['execute_frames']} actions per chunk"
    ran, whole = len(results["trials"]), protocol["trials_per_task"] * len(protocol["tasks"])
    return [
        execution,
        f"{ran} trials" if ran == whole else f"{ran} of the protocol's {whole} trials",
        protocol["simulator"]["class_path"].rpartition(".")[2],
        results["created"].replace("T", " ")[:16] + " UTC",
    ]


def _headline(results: Mapping[str, Any]) -> list[_Headline]:
    """The means over tasks, and the share of trials in which some action was invalid."""
    boxes = []
    for arm, rate in results["mean"].items():
        label = _mean_label(arm, results)
        if arm == "policy":
            boxes.append(_Headline(_percent(rate), label, "main"))
        else:
            boxes.append(_Headline(_percent(rate), f"{arm}: {_ARMS.get(arm, arm)}"))
    runs = [trial["policy"] for trial in results["trials"]]
    share = sum(run["invalid_frames"] > 0 for run in runs) / len(runs)
    return [*boxes, _Headline(_percent(share), "of trials had an invalid action")]


def _mean_label(arm: str, results: Mapping[str, Any]) -> str:
    counts = [
        summary[arm] for name, summary in results["tasks"].items() if name not in results["low_ceiling"]
    ]
    label = f"success, {sum(c['successes'] for c in counts)} of {sum(c['trials'] for c in counts)} trials"
    label += f", mean over {len(counts)} tasks" if len(counts) > 1 else ""
    label += f", {len(results['low_ceiling'])} apart" if results["low_ceiling"] else ""
    if (interval := results["mean_interval"][arm]) is not None:
        label += ", 95 % in [{:.0f}, {:.0f}]".format(*(100 * end for end in interval))
    return label


def _task(name: str, results: Mapping[str, Any], videos: Mapping[str, TrialVideo]) -> _Task:
    summary = results["tasks"][name]
    counts = summary["stop_reasons"]
    return _Task(
        name,
        {arm: summary[arm] for arm in results["mean"]},
        [_square(trial, trial["id"] in videos) for trial in results["trials"] if trial["task"] == name],
        {reason: counts[reason] for reason in _REASONS if reason in counts},
    )


def _square(trial: Mapping[str, Any], shown: bool) -> _Square:
    reason = trial["policy"]["stop_reason"]
    title = f"{trial['id']}: {_REASONS[reason]} after {trial['policy']['seconds']:.1f} s; {trial['prompt']}"
    return _Square(trial["id"], reason, title, shown)


def _diagnostics(summary: Mapping[str, Any]) -> dict[str, str]:
    return {
        **_with_units(summary["diagnostics"]),
        "seconds per trial": _number(summary["mean_seconds"]),
        "invalid actions": str(summary["invalid_frames"]),
        "steps out of reach": str(summary["unreached_steps"]),
    }


def _protocol(results: Mapping[str, Any]) -> dict[str, str]:
    protocol, policy = results["protocol"], results["policy"]
    facts = {"protocol hash": results["protocol_hash"][:16], "policy": policy["name"]}
    if policy["checkpoint"]:
        facts["checkpoint"] = policy["checkpoint"]
    rules = {key: value for key, value in protocol.items() if key not in ("clip", "simulator")}
    settings = protocol["simulator"]["init_args"]
    for prefix, part in (("", rules), ("clip: ", protocol["clip"]), ("simulator: ", settings)):
        facts |= {prefix + key.replace("_", " "): _value_text(value) for key, value in part.items()}
    return facts


def _filters(results: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Labels of the filter buttons, by the attribute of a trial that they filter by and its value."""
    filters = {"outcome": {"all": "All", "failure": "Failures", "success": "Successes"}}
    if len(results["tasks"]) > 1:
        filters["task"] = {"all": "All tasks", **{name: name for name in results["tasks"]}}
    return filters


def _cards(
    results: Mapping[str, Any], videos: Mapping[str, TrialVideo], room: int
) -> list[tuple[str, Markup]]:
    """Stop reasons and cards of as many trials as fit into `room` bytes, failures first."""
    trials = [trial for trial in results["trials"] if trial["id"] in videos]
    cards: list[tuple[str, Markup]] = []
    for trial in sorted(trials, key=lambda trial: _ORDER.index(trial["policy"]["stop_reason"])):
        card = _card(trial, videos[trial["id"]])
        room -= len(card.encode())
        if room < 0:
            break
        cards.append((trial["policy"]["stop_reason"], card))
    return cards


def _card(trial: Mapping[str, Any], video: TrialVideo) -> Markup:
    run = trial["policy"]
    metrics = {"": f"{run['seconds']:.1f} s", "chunks": str(run["chunks"])}
    metrics |= {"invalid": str(run["invalid_frames"])} if run["invalid_frames"] else {}
    card = ENVIRONMENT.get_template("trial_card.html.j2").render(
        trial=trial,
        video=video,
        kind={"success": "good", "failed": "bad"}.get(run["stop_reason"], ""),
        reason=_REASONS[run["stop_reason"]],
        poster=_data_url("image/png", video.poster),
        mp4=_data_url("video/mp4", video.mp4),
        metrics=metrics | _with_units(run["diagnostics"]),
    )
    return Markup(card)  # its values were escaped as it was rendered


def _groups(results: Mapping[str, Any], cards: Sequence[tuple[str, Markup]]) -> list[_Group]:
    groups = []
    for reason in _ORDER:
        ended = [trial for trial in results["trials"] if trial["policy"]["stop_reason"] == reason]
        errors = [(t["id"], t["policy"]["error"][:_ERROR]) for t in ended if "error" in t["policy"]]
        shown = [card for ending, card in cards if ending == reason]
        if shown or errors:
            groups.append(_Group(reason, len(ended), shown, dict(errors[:_ERRORS])))
    return groups


def _note(results: Mapping[str, Any], videos: Mapping[str, TrialVideo], shown: int) -> str:
    """A sentence on what the gallery shows."""
    count = sum(trial["id"] in videos for trial in results["trials"])
    if not count:
        return "No trial has a video."
    note = (
        f"{shown} of {len(results['trials'])} trials, chosen before they ran (the first of every task), "
        "by how they ended, failures first. Videos run in real time; click to pause. In action images red is "
        "the tool centre point, green and blue are points along its axes, the blue background is the "
        "gripper's openness."
    )
    if shown < count:
        note += f" {count - shown} more videos would have made the page too large."
    return note


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _percent(rate: float | None) -> str:
    """A rate in whole percents, with a no-break space."""
    return percent(rate).replace(" ", "\N{NO-BREAK SPACE}")


def _with_units(diagnostics: Mapping[str, float | None]) -> dict[str, str]:
    """Names and values of a simulator's diagnostics; the unit that ends a name goes behind its value."""
    found = {}
    for key, value in diagnostics.items():
        name, _, unit = key.rpartition("_")
        known = bool(name) and unit in _UNITS
        number = _number(value)
        text = f"{number}\N{NO-BREAK SPACE}{unit}" if known and value is not None else number
        found[(name if known else key).replace("_", " ")] = text
    return found


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        whole = all(isinstance(item, int) for item in value)
        return (" x " if whole else ", ").join(map(str, value))
    return str(value)


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("benchmarks.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = _percent
    made.globals |= {"arms": _ARMS, "reasons": _REASONS}
    return made


ENVIRONMENT = _environment()
