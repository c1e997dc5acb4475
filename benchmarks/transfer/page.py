"""docs/transfer.md from the results of a study; text that explains them stands in transfer.md.j2."""

from collections.abc import Iterator, Mapping, Sequence
from math import isinf, isnan
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import write_text
from ai_wam.files.json_yaml import read_yaml
from benchmarks.evaluation.trial_video import SEEN
from benchmarks.report.text_tables import percent
from benchmarks.transfer.chart import line_chart
from benchmarks.transfer.outcomes import Outcomes, Rate
from benchmarks.transfer.picture import write_picture
from benchmarks.transfer.running import cpu_minutes
from benchmarks.transfer.study import TRAININGS, run_name

CHART, PICTURE = "transfer_azimuth.svg", "transfer_seen.png"
_SHOWN = {  # points of the picture, and their labels
    "none": "as trained",
    "azimuth_30": "30 degrees",
    "azimuth_60": "60 degrees",
    "azimuth_90": "90 degrees",
    "cameras_mixed": "mixed",
    "light": "light",
    "appearance": "colours",
    "distractors": "distractors",
}
_MISSING, _NO_CEILING = "not run", "ceiling {}"
_RAYS = ["trained on", "point", "with rays", "without", "only with", "only without", "p"]
_NEAR = 20.0  # degrees between cameras that see next to no depth
_ANGLES = ["trained on", "point", f"cameras less than {_NEAR:.0f} degrees apart", "elsewhere"]
_CONFIDENCE = ["training", "surest sixth", "second", "third", "fourth", "fifth", "last", "separation"]
_LOW = 0.95  # ceilings below it are shown
_ENVIRONMENT = Environment(
    loader=PackageLoader("benchmarks.transfer", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_page(outcomes: Outcomes, points: Path, page: Path) -> None:
    """Write the page, and its chart beside it.

    Args:
        outcomes: of the study.
        points: file of the sweep's points.
        page: a Markdown file.

    Raises:
        ValueError: no training is tested yet.
    """
    if not outcomes.finished:
        raise InvalidValue(f"{outcomes.folder}: no training of the study is tested yet, so there is no page")
    swept = [name for name in TRAININGS if TRAININGS[name].points is not None]
    listed = [point for point in read_yaml(points)["points"]]
    names = [point["name"] for point in listed]
    rates = {name: outcomes.points(name) for name in TRAININGS}
    azimuth = {
        "none": 0.0,
        **{one["name"]: float(one["at"]) for one in listed if one.get("axis") == "azimuth"},
    }
    lines = {
        TRAININGS[name].title: [(place, rates[name][point].mean) for point, place in azimuth.items()]
        for name in swept
        if azimuth.keys() <= rates[name].keys() and not name.endswith("no_rays")
    }
    if lines:
        title = "degrees of azimuth by which both cameras are turned"
        write_text(page.parent / CHART, line_chart(title, lines))
    usual = [name for name in swept if not name.endswith("no_rays")]
    pictures = list(_seen(outcomes, rates))
    if pictures:
        write_picture(page.parent / PICTURE, pictures)
    tables = {
        "success": (["point", *(TRAININGS[name].title for name in usual)], _success(names, usual, rates)),
        "rays": (_RAYS, _rays(outcomes, rates)),
        "others": (["training", "task", "success", "blind floor", "ceiling"], _others(rates)),
        "doubts": (["point", "success", "not valid", "median std (mm)"], _doubts(outcomes, names, rates)),
        "angles": (_ANGLES, _angles(outcomes, rates)),
        "confidence": (_CONFIDENCE, _confidence(outcomes, rates)),
        "budget": (["training", "seeds", "minutes of one processor, each seed"], _budget(outcomes)),
    }
    text = _ENVIRONMENT.get_template("transfer.md.j2").render(
        **{name: _table(head, rows) for name, (head, rows) in tables.items()},
        chart=CHART if lines else None,
        picture=PICTURE if pictures else None,
        missing=[TRAININGS[name].title for name in TRAININGS if name not in outcomes.finished],
    )
    write_text(page, text)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    if len(lines) == 2:
        return "Not run yet."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return _MISSING
    return str(rate) if rate.ceiling >= _LOW else f"{rate} ({_NO_CEILING.format(percent(rate.ceiling))})"


def _success(
    points: Sequence[str], trainings: Sequence[str], rates: Mapping[str, Mapping[str, Rate]]
) -> Iterator[list[str]]:
    for point in points:
        yield [f"`{point}`", *(_cell(rates[name].get(point)) for name in trainings)]


def _rays(outcomes: Outcomes, rates: Mapping[str, Mapping[str, Rate]]) -> Iterator[list[str]]:
    """Pairs of trainings that differ in the rays alone."""
    for blind in (name for name in TRAININGS if name.endswith("_no_rays")):
        seeing = blind.removesuffix("_no_rays")
        for point in ("none", "azimuth_30", "azimuth_45", "azimuth_60", "cameras_mixed"):
            pair = [rates[name].get(point) for name in (seeing, blind)]
            if None in pair:
                continue
            only, other, p = outcomes.paired(seeing, blind, [point])
            title = TRAININGS[seeing].title
            yield [title, f"`{point}`", *map(_cell, pair), str(only), str(other), f"{p:.2g}"]


def _seen(outcomes: Outcomes, rates: Mapping[str, Mapping[str, Rate]]) -> Iterator[tuple[str, Path]]:
    """First pictures of the policy with cameras drawn, and its success, in the order of `_SHOWN`."""
    for point, label in _SHOWN.items():
        if (rate := rates["cameras"].get(point)) is not None:
            seed = outcomes.seeds_of("cameras")[0]
            file = outcomes.place("cameras", seed) / point / SEEN
            if file.is_file():
                yield f"{label}: {100 * rate.mean:.0f} %", file


def _angles(outcomes: Outcomes, rates: Mapping[str, Mapping[str, Rate]]) -> Iterator[list[str]]:
    """Where turned cameras come near one another, and where they do not."""
    for name in ("one_rig", "cameras"):
        for point in ("azimuth_45", "azimuth_60", "azimuth_90"):
            if point in rates[name]:
                parts = outcomes.by_angle(name, point, _NEAR)
                cells = ["none" if one is None else f"{one.successes} of {one.trials}" for one in parts]
                yield [TRAININGS[name].title, f"`{point}`", *cells]


def _others(rates: Mapping[str, Mapping[str, Rate]]) -> Iterator[list[str]]:
    for name, training in TRAININGS.items():
        if training.points is None:
            for task, rate in rates[name].items():
                yield [training.title, f"`{task}`", str(rate), percent(rate.floor), percent(rate.ceiling)]


def _doubts(
    outcomes: Outcomes, points: Sequence[str], rates: Mapping[str, Mapping[str, Rate]]
) -> Iterator[list[str]]:
    for point in points:
        if (rate := rates["cameras"].get(point)) is not None:
            invalid, std = outcomes.doubts("cameras", point)
            known = "none" if isnan(std) else f"{1000 * std:.1f}"
            yield [f"`{point}`", _cell(rate), percent(invalid), known]


def _confidence(outcomes: Outcomes, rates: Mapping[str, Mapping[str, Rate]]) -> Iterator[list[str]]:
    """Success by confidence, where cameras are given rightly and where wrongly."""
    for name in ("one_rig", "cameras"):
        for wrongly in (False, True):
            points = [
                point
                for point, rate in rates[name].items()
                if point.startswith("calibration") == wrongly and rate.ceiling >= _LOW
            ]
            if not points:
                continue
            sure = outcomes.confidence(name, points)
            cells = [
                f"{percent(one.rate)} ({'not valid' if isinf(limit) else f'{1000 * limit:.0f} mm'})"
                for limit, one in sure.bins
            ]
            which = "cameras given wrongly" if wrongly else "cameras given rightly"
            yield [f"{TRAININGS[name].title}, {which}", *cells, f"{sure.separation:.2f}"]


def _budget(outcomes: Outcomes) -> Iterator[list[str]]:
    for name in outcomes.finished:
        seeds = outcomes.seeds_of(name)
        spent = [cpu_minutes(f"fit-{run_name(name, seed)}", outcomes.folder) for seed in seeds]
        cells = [", ".join(map(str, seeds)), ", ".join("?" if m is None else f"{m:.0f}" for m in spent)]
        yield [TRAININGS[name].title, *cells]
