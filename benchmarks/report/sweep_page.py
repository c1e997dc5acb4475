"""A sweep as lines of text and as a page: success against each axis, with what the policy saw."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ai_wam.files.atomic import write_text
from benchmarks.evaluation.trial_video import SEEN
from benchmarks.report.html_report import ENVIRONMENT
from benchmarks.report.text_tables import aligned, percent, rate_with_interval

PAGE = "sweep.html"
_ARMS = ("policy", "ceiling", "blind", "floor")
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 490.0, 12.0, 190.0  # of a chart's area in a picture of 500 x 230


class _Mark(NamedTuple):
    """A point of a chart: its place, and the ends of its interval."""

    x: float
    y: float
    low: float
    high: float
    label: str


class _Chart(NamedTuple):
    """Success along one axis, by arm; ticks are places and labels below."""

    title: str
    marks: Mapping[str, Sequence[_Mark]]
    ticks: Sequence[tuple[float, str]]


def sweep_table(sweep: Mapping[str, Any]) -> str:
    """A line per point: success of every arm with its 95 % interval, and invalid actions.

    Args:
        sweep: content of sweep.json.
    """
    results = sweep["results"]
    if not results:
        return "no point is finished"
    arms = list(results[0]["mean"])
    rows = [["point", *arms, "invalid actions", "median std (mm)"]]
    for point in results:
        rates = [rate_with_interval(point["mean"][arm], point["mean_interval"][arm]) for arm in arms]
        std = point["median_position_std_mm"]
        rows.append(
            [point["name"], *rates, str(point["invalid_frames"]), "none" if std is None else str(std)]
        )
    notes = ["95 % intervals: Wilson's; of means over tasks: MOVER from Wilson's", *low_ceilings(results)]
    return "\n".join([*aligned(rows), *notes])


def low_ceilings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every point where tasks are in no mean, with their rates.

    Args:
        results: of the sweep's points.
    """
    return [
        f"{point['name']}: in no mean, since its ceiling is low, is {task}: "
        + ", ".join(f"{arm} {percent(point['tasks'][task][arm]['rate'])}" for arm in point["mean"])
        for point in results
        for task in point["low_ceiling"]
    ]


def write_page(folder: Path, sweep: Mapping[str, Any]) -> None:
    """Write the page of a sweep into its folder; pictures are those that its tests left there.

    Args:
        folder: of the sweep.
        sweep: content of sweep.json.
    """
    page = ENVIRONMENT.get_template("sweep.html.j2").render(
        sweep=sweep,
        charts=_charts(sweep["results"]),
        notes=low_ceilings(sweep["results"]),
        pictures={point["name"]: _picture(folder / point["name"] / SEEN) for point in sweep["results"]},
        left=_LEFT,
        right=_RIGHT,
        levels=[(_y(level / 100), level) for level in (0, 25, 50, 75, 100)],
    )
    write_text(folder / PAGE, page)


def _charts(results: Sequence[Mapping[str, Any]]) -> list[_Chart]:
    """One per axis; an unshifted point begins every one."""
    start = [point for point in results if point["shift"] is None]
    charts = []
    for axis in dict.fromkeys(point["axis"] for point in results if point["axis"] is not None):
        along = sorted((point for point in results if point["axis"] == axis), key=lambda point: point["at"])
        begin = [] if any(point["at"] == 0 for point in along) else [{**one, "at": 0.0} for one in start[:1]]
        unit = next((f" ({point['unit']})" for point in along if point["unit"]), "")
        charts.append(_chart(f"{axis}{unit}", [*begin, *along]))
    return charts


def _chart(title: str, points: Sequence[Mapping[str, Any]]) -> _Chart:
    places = [float(point["at"]) for point in points]
    low, span = min(places), (max(places) - min(places)) or 1.0
    xs = [_LEFT + 12 + (_RIGHT - _LEFT - 24) * (place - low) / span for place in places]
    marks: dict[str, list[_Mark]] = {}
    for arm in _ARMS:
        for x, point in zip(xs, points, strict=True):
            if (rate := point["mean"].get(arm)) is not None:
                ends = point["mean_interval"][arm]
                label = f"{point['name']}: {arm} {percent(rate)}"
                marks.setdefault(arm, []).append(_Mark(x, _y(rate), _y(ends[0]), _y(ends[1]), label))
    return _Chart(title, marks, [(x, f"{place:g}") for x, place in zip(xs, places, strict=True)])


def _y(rate: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * rate


def _picture(file: Path) -> str | None:
    """A picture for the page; None where the point's test made none."""
    if not file.is_file():
        return None
    return f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}"
