"""One self-contained page about an evaluation: figures, protocol, and videos of trials."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from benchmarks.evaluation.acting_summary import acting
from benchmarks.evaluation.trial_recording import Recording
from benchmarks.report.text_tables import apart_title, notes, percent, policy_name

_LIMIT = 29_500_000  # bytes of the page; mail and review tools refuse much more
_RESERVE = 60_000  # of them for the sentence above the videos, headings and crashes' messages between them
_UNITS = ("m", "mm", "rad", "s")
_ERROR, _ERRORS = 300, 20  # characters of a crash's message, and how many are shown
_ARMS = {
    "policy": "policy",
    "ceiling": "the expert's demonstration through the action-image codec and the same controller",
    "floor": "hold still",
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


def render(results: Mapping[str, Any], recordings: Mapping[str, Recording]) -> str:
    """The page.

    Args:
        results: content of results.json.
        recordings: pictures by trial id; failures are shown first, and none past a page of 30 MB.
    """
    template = Template((files("benchmarks.report") / "report.html").read_text(encoding="utf-8"))
    name = policy_name(results["policy"])
    parts = dict(
        title=escape(f"{name}: {_percent(results['mean']['policy'])}"),
        policy=escape(name),
        lead=_lead(results),
        figures=_figures(results),
        tasks=_tasks(results, recordings) + _remarks(results),
        diagnostics=_diagnostics(results["tasks"]),
        acting=acting(results),
        filters=_filters(results),
        protocol=_protocol(results),
    )
    rest = template.substitute(parts, note="", gallery="")
    gallery, note = _gallery(results, recordings, _LIMIT - _RESERVE - len(rest.encode()))
    return template.substitute(parts, note=note, gallery=gallery)


def _lead(results: Mapping[str, Any]) -> str:
    protocol = results["protocol"]
    execution = "one shot, open loop"
    if protocol["execution"] == "receding":
        execution = f"receding horizon, {protocol['execute_frames']} actions per plan"
    simulator = protocol["simulator"]["class_path"].rpartition(".")[2]
    ran, whole = len(results["trials"]), protocol["trials_per_task"] * len(protocol["tasks"])
    parts = [
        execution,
        f"{ran} trials" if ran == whole else f"{ran} of the protocol's {whole} trials",
        simulator,
        results["created"].replace("T", " ")[:16] + " UTC",
    ]
    return "".join(f"<span>{escape(part)}</span>" for part in parts)


def _figures(results: Mapping[str, Any]) -> str:
    """The means over tasks, in large type."""
    boxes = []
    for arm, rate in results["mean"].items():
        counts = [summary[arm] for name, summary in results["tasks"].items() if name not in results["apart"]]
        of = f"success, {sum(c['successes'] for c in counts)} of {sum(c['trials'] for c in counts)} trials"
        of += f", mean over {len(counts)} tasks" if len(counts) > 1 else ""
        of += f", {len(results['apart'])} apart" if results["apart"] else ""
        if (interval := results["mean_interval"][arm]) is not None:
            of += ", 95 % in [{:.0f}, {:.0f}]".format(*(100 * end for end in interval))
        label = of if arm == "policy" else f"{arm}: {_ARMS.get(arm, arm)}"
        boxes.append(_figure(_percent(rate), label, "main" if arm == "policy" else ""))
    boxes.append(
        _figure(_percent(_invalid_share(results)), "of trials met an action the policy could not vouch for")
    )
    return "".join(boxes)


def _figure(value: str, label: str, kind: str = "") -> str:
    return f'<div class="figure {kind}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _invalid_share(results: Mapping[str, Any]) -> float:
    """Share of trials in which the policy could not vouch for some action."""
    runs = [trial["policy"] for trial in results["trials"]]
    return sum(run["invalid_frames"] > 0 for run in runs) / len(runs)


def _tasks(results: Mapping[str, Any], recordings: Mapping[str, Recording]) -> str:
    """Those in the mean, then those whose ceiling is too low for it."""
    blocks = {name: _task(name, one, results, recordings) for name, one in results["tasks"].items()}
    counted = "".join(block for name, block in blocks.items() if name not in results["apart"])
    if not results["apart"]:
        return counted
    title = f'<p class="apart">Listed apart, {escape(apart_title(results["protocol"]))}.</p>'
    return counted + title + "".join(blocks[name] for name in results["apart"])


def _remarks(results: Mapping[str, Any]) -> str:
    return f'<p class="apart">{escape(". ".join(_upper(note) for note in notes(results)))}.</p>'


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _task(
    name: str, summary: Mapping[str, Any], results: Mapping[str, Any], recordings: Mapping[str, Recording]
) -> str:
    arms = "".join(_arm(arm, summary[arm]) for arm in results["mean"])
    trials = [trial for trial in results["trials"] if trial["task"] == name]
    counts = "".join(
        f'<span><i class="{reason}"></i>{count} {_REASONS[reason]}</span>'
        for reason, count in sorted(
            summary["stop_reasons"].items(), key=lambda item: list(_REASONS).index(item[0])
        )
    )
    return (
        f'<div class="task"><header><h3>{escape(name)}</h3></header>{arms}'
        f'<div class="strip">{"".join(_square(trial, trial["id"] in recordings) for trial in trials)}</div>'
        f'<div class="key">{counts}</div></div>'
    )


def _arm(arm: str, figures: Mapping[str, Any]) -> str:
    """One bar of a success rate with its interval as a whisker."""
    if figures["interval"] is None:
        return f'<div class="arm {arm}"><label>{arm}</label><span></span><b>none</b><small></small></div>'
    low, high = (100 * end for end in figures["interval"])
    ends = "".join(f'<line class="whisker" x1="{x:.2f}" x2="{x:.2f}" y1="3" y2="7"/>' for x in (low, high))
    return (
        f'<div class="arm {arm}"><label title="{escape(_ARMS.get(arm, arm))}">{arm}</label>'
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{figures["rate"]:.3f}"><rect class="track" width="100" height="10"/>'
        f'<rect class="value" width="{100 * figures["rate"]:.2f}" height="10"/>'
        f'<line class="whisker" x1="{low:.2f}" x2="{high:.2f}" y1="5" y2="5"/>{ends}</svg>'
        f"<b>{_percent(figures['rate'])}</b>"
        f"<small>{figures['successes']}/{figures['trials']}, 95 % in [{low:.0f}, {high:.0f}]</small></div>"
    )


def _square(trial: Mapping[str, Any], shown: bool) -> str:
    reason = trial["policy"]["stop_reason"]
    title = escape(
        f"{trial['id']}: {_REASONS[reason]} after {trial['policy']['seconds']:.1f} s; {trial['prompt']}"
    )
    if shown:
        return f'<a class="{reason}" href="#{escape(trial["id"])}" title="{title}"></a>'
    return f'<i class="{reason}" title="{title}"></i>'


def _diagnostics(tasks: Mapping[str, Any]) -> str:
    blocks = []
    for name, summary in tasks.items():
        figures = {
            **_measured(summary["diagnostics"]),
            "seconds per trial": _number(summary["mean_seconds"]),
            "invalid actions": str(summary["invalid_frames"]),
            "steps out of reach": str(summary["unreached_steps"]),
        }
        blocks.append(f'<div class="task named"><h3>{escape(name)}</h3>{_facts(figures)}</div>')
    return "".join(blocks)


def _protocol(results: Mapping[str, Any]) -> str:
    protocol, policy = results["protocol"], results["policy"]
    facts = {"protocol hash": results["protocol_hash"][:16], "policy": policy["name"]}
    if policy["checkpoint"]:
        facts["checkpoint"] = policy["checkpoint"]
    facts |= {
        key.replace("_", " "): _plain(value)
        for key, value in protocol.items()
        if key not in ("clip", "simulator")
    }
    facts |= {f"clip: {key.replace('_', ' ')}": _plain(value) for key, value in protocol["clip"].items()}
    facts |= {
        f"simulator: {key.replace('_', ' ')}": _plain(value)
        for key, value in protocol["simulator"]["init_args"].items()
    }
    whole = {key: results[key] for key in ("policy", "protocol", "protocol_hash", "versions")}
    text = f"<pre><code>{escape(json.dumps(whole, indent=2))}</code></pre>"
    return f"{_facts(facts)}<details><summary>Policy, protocol and versions in full</summary>{text}</details>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def _filters(results: Mapping[str, Any]) -> str:
    outcomes = _buttons("outcome", {"all": "All", "failure": "Failures", "success": "Successes"})
    if len(results["tasks"]) == 1:
        return outcomes
    tasks = _buttons("task", {"all": "All tasks", **{name: name for name in results["tasks"]}})
    return f'{outcomes}<span class="gap"></span>{tasks}'


def _buttons(key: str, labels: Mapping[str, str]) -> str:
    return "".join(
        f'<button type="button" data-key="{key}" data-value="{escape(value)}" '
        f'aria-pressed="{str(value == "all").lower()}">{escape(label)}</button>'
        for value, label in labels.items()
    )


def _gallery(results: Mapping[str, Any], recordings: Mapping[str, Recording], room: int) -> tuple[str, str]:
    """Cards by stop reason, failures first, within so many bytes; and a sentence on what is shown."""
    trials = [trial for trial in results["trials"] if trial["id"] in recordings]
    trials.sort(key=lambda trial: _ORDER.index(trial["policy"]["stop_reason"]))
    cards: dict[str, list[str]] = {}
    for trial in trials:
        card = _card(trial, recordings[trial["id"]])
        room -= len(card.encode())
        if room < 0:
            break
        cards.setdefault(trial["policy"]["stop_reason"], []).append(card)
    groups = "".join(_group(reason, cards.get(reason, []), results) for reason in _ORDER)
    if not trials:
        return groups, "No trial was recorded."
    shown = sum(map(len, cards.values()))
    note = (
        f"{shown} of {len(results['trials'])} trials, chosen before they ran (the first of every task), "
        "by how they ended, failures first. Videos run in real time; click to pause. In action images red is "
        "the tool centre point, green and blue are points along its axes, the blue background is the "
        "gripper's openness."
    )
    if shown < len(trials):
        note += f" {len(trials) - shown} more recorded trials would have made the page too large."
    return groups, note


def _group(reason: str, cards: Sequence[str], results: Mapping[str, Any]) -> str:
    """The trials that ended in one way: videos, and what crashes said, which leave none."""
    ended = [trial for trial in results["trials"] if trial["policy"]["stop_reason"] == reason]
    errors = {trial["id"]: trial["policy"]["error"] for trial in ended if "error" in trial["policy"]}
    if not cards and not errors:
        return ""
    said = "".join(
        f"<li><code>{escape(name)}</code> {escape(text[:_ERROR])}</li>"
        for name, text in list(errors.items())[:_ERRORS]
    )
    return (
        f'<section class="group"><h3><i class="{reason}"></i>{_REASONS[reason]}'
        f"<small>{len(ended)} trials, {len(cards)} shown</small></h3>"
        f'<div class="gallery">{"".join(cards)}</div>{f"<ul>{said}</ul>" if said else ""}</section>'
    )


def _card(trial: Mapping[str, Any], recording: Recording) -> str:
    run = trial["policy"]
    reason = run["stop_reason"]
    kind = {"success": "good", "failed": "bad"}.get(reason, "")
    figures = {"": f"{run['seconds']:.1f} s", "plans": str(run["plans"])}
    figures |= {"invalid": str(run["invalid_frames"])} if run["invalid_frames"] else {}
    figures |= _measured(run["diagnostics"])
    foot = "".join(f"<span>{escape(key)} <b>{escape(value)}</b></span>" for key, value in figures.items())
    return (
        f'<article class="card trial" id="{escape(trial["id"])}" data-outcome="{run["outcome"]}" '
        f'data-task="{escape(trial["task"])}"><header><div><q>{escape(trial["prompt"])}</q>'
        f"<small>{escape(trial['id'])}, seed {trial['seed']}</small></div>"
        f'<span class="badge {kind}">{_REASONS[reason]}</span></header>'
        f'<div class="pictures"><div class="columns">{_spans(recording.panels)}</div>'
        f'<div class="rows">{_spans(view.replace("_", " ") for view in recording.views)}</div>'
        f'<video muted loop playsinline preload="none" poster="{_data("image/png", recording.poster)}" '
        f'data-src="{_data("video/mp4", recording.video)}"></video></div>'
        f"<footer>{foot}</footer></article>"
    )


def _spans(texts: Iterable[str]) -> str:
    return "".join(f"<span>{escape(text)}</span>" for text in texts)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _percent(rate: float | None) -> str:
    """With a space that does not break."""
    return percent(rate).replace(" ", "\N{NO-BREAK SPACE}")


def _measured(figures: Mapping[str, float | None]) -> dict[str, str]:
    """Words and values of a simulator's figures, whose names end with their unit where they have one."""
    found = {}
    for key, value in figures.items():
        name, _, unit = key.rpartition("_")
        known = bool(name) and unit in _UNITS
        number = _number(value)
        text = f"{number}\N{NO-BREAK SPACE}{unit}" if known and value is not None else number
        found[(name if known else key).replace("_", " ")] = text
    return found


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return (
            " x ".join(map(str, value))
            if all(isinstance(item, int) for item in value)
            else ", ".join(map(str, value))
        )
    return str(value)
