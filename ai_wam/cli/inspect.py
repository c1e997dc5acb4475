"""`ai-wam inspect`: what is in a folder of shards, and whether it is fit to train on."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.errors import CannotContinue, InvalidValue
from ai_wam.files.atomic import AnyPath, as_path, write_json
from ai_wam.utils.counted import counted
from ai_wam.utils.number_checks import check_numbers
from datamodules.checks.camera_check import ViewCheck, open_recordings, painted_frames
from datamodules.checks.camera_check import camera_check as check_cameras
from datamodules.checks.contact_sheet import write_contact_sheet
from datamodules.checks.inspection import EpisodeReport, Limits, inspect_episodes
from datamodules.checks.wrong_units import Bounds, odd_gripper
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet
from datamodules.sources.folder import INSPECTION

_SHOWN = 10  # violations in full; inspection.json has them all


def inspect(
    shards: str,
    out: str | None = None,
    size: int = 128,
    samples: int = 16,
    limits: Limits = Limits(),  # noqa: B008  # frozen; jsonargparse shows its fields
    bounds: Bounds = Bounds(),  # noqa: B008  # the same
    camera_check: bool = False,
    seen: str | None = None,
    max_pixels: float = 5.0,
) -> None:
    """Look at every episode of a folder of shards; exit with 1 if one breaks the format's rules.

    Prints counts, durations, captions and ranges, sends every episode's actions through action images and
    back, and writes a contact sheet.

    Args:
        shards: a folder that `ai-wam collect` or `convert` wrote; with camera_check also a folder of plain
            recordings (docs/shards.md), before they are converted.
        out: where inspection.json and the pictures go; `<shards>/inspection` if left out.
        size: height and width of the action images, pixels.
        samples: frames of each episode that are drawn and read back, evenly spread.
        limits: when an episode counts as a violation.
        bounds: plausible positions, cameras, speeds, openness; beyond is a violation.
        camera_check: instead of all this, paint the recorded poses over the recorded pictures: the cross has
            to lie on the tool's tip.
        seen: for the camera check, a CSV with header key,view,frame,x,y: pixels where the tool centre point
            is seen, in the undistorted picture where `undistort` is on; these frames are painted, and the
            distances to the projected points are printed. Every 30th frame of the first three episodes is
            painted if left out.
        max_pixels: largest median distance of a view, in pixels of its recording, that passes.
    """
    check_numbers("inspect", at_least=1, size=size)
    check_numbers("inspect", at_least=0, max_pixels=max_pixels)
    place = as_path(out) if out is not None else as_path(shards) / INSPECTION
    if seen is not None and not camera_check:
        raise InvalidValue(f"--seen {seen} is for the camera check; give --camera_check true as well")
    if camera_check:
        _print_camera_check(shards, place, seen, max_pixels)
        return
    folder = ShardSet(shards)
    tokenizer = ActionImageTokenizer()
    found = inspect_episodes(folder, tokenizer, (size, size), samples, limits, bounds)
    reports = list(tqdm(found, total=len(folder), unit="episode", leave=False))
    print("\n".join(summary(shards, reports)))
    write_json(place / "inspection.json", {"episodes": [report.to_json() for report in reports]})
    bad = [report for report in reports if report.violations]
    if len(bad) < len(reports):
        good = [index for index, report in enumerate(reports) if not report.violations]
        write_contact_sheet(place / "contact_sheet.png", folder, good, tokenizer)
    print(f"pictures and details: {place}")
    odd = _odd_gripper(folder, reports, bounds)
    if bad or odd:
        raise CannotContinue("\n".join([*([_violations(bad)] if bad else []), *odd]))


def _odd_gripper(folder: ShardSet, reports: Sequence[EpisodeReport], bounds: Bounds) -> list[str]:
    """A violation of the whole set: its gripper never opens, or never closes, by more than a tenth."""
    ranges = {
        i: (r.low[3], r.high[3]) for i, r in enumerate(reports) if r.low is not None and r.high is not None
    }
    if not ranges:
        return []
    source = str(folder.header(next(iter(ranges))).provenance.get("source", ""))
    return [each.text for each in odd_gripper(ranges.values(), bounds, source)]


def summary(name: str, reports: Sequence[EpisodeReport]) -> list[str]:
    """The report as lines of text."""
    seconds = np.array([report.seconds for report in reports])
    sets = Counter(tuple(f"{view} {h}x{w}" for view, (h, w) in report.views.items()) for report in reports)
    rates = Counter(f"{report.hz:g}" for report in reports)
    frames = sum(report.frames for report in reports)
    return [
        name,
        f"  episodes   {len(reports)}, {counted(frames, 'frame')}, {seconds.sum() / 60:.1f} min",
        f"  duration   {seconds.min():.1f} to {seconds.max():.1f} s, median {np.median(seconds):.1f} s",
        *_counted("rate", {f"{rate} Hz": count for rate, count in rates.items()}),
        *_counted("views", {", ".join(views): count for views, count in sets.items()}),
        *_captions(reports),
        *_ranges(reports),
        *_round_trips(reports),
        *_labels(reports),
        *_counted("note", Counter(note for report in reports for note in report.notes)),
    ]


def _counted(name: str, counts: dict[str, int]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [f"  {name:<10} {what} ({counted(count, 'episode')})" for what, count in ordered]


def _captions(reports: Sequence[EpisodeReport]) -> list[str]:
    captions = Counter(caption for report in reports for caption in report.instructions)
    lines = [f"  captions   {len(captions)} different ones, such as"]
    return lines + [f"             {caption!r} ({count})" for caption, count in captions.most_common(4)]


def _ranges(reports: Sequence[EpisodeReport]) -> list[str]:
    lows, highs = ([getattr(r, name) for r in reports if r.low is not None] for name in ("low", "high"))
    if not lows:
        return ["  actions    none recorded"]
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    first = np.median([report.first_openness for report in reports if report.first_openness is not None])
    axes = ", ".join(f"{axis} {low[i]:.3f} to {high[i]:.3f} m" for i, axis in enumerate("xyz"))
    return [
        f"  actions    {counted(len(lows), 'episode')}: {axes}",
        f"             openness {low[3]:.2f} to {high[3]:.2f} (1 = open), {first:.2f} in the first frames",
    ]


def _round_trips(reports: Sequence[EpisodeReport]) -> list[str]:
    trips = [report.round_trip for report in reports if report.round_trip is not None]
    if not trips:
        return []
    frames = sum(trip.frames for trip in trips)
    shares = {
        name: sum(getattr(t, name) for t in trips) / frames for name in ("off_screen", "one_view", "unread")
    }
    medians = [trip.median_mm for trip in trips if trip.median_mm is not None]
    worst = [(t.worst_mm or 0.0, t.worst_degrees or 0.0) for t in trips]
    residual = "nothing was read back"
    if medians:
        residual = (
            f"median {np.median(medians):.2g} mm, worst {max(mm for mm, _ in worst):.2g} mm and "
            f"{max(degrees for _, degrees in worst):.2g} degrees"
        )
    return [
        f"  round trip {counted(frames, 'frame')} of {len(trips)} episodes: {residual}",
        f"             tool in no picture {shares['off_screen']:.1%}, in one only {shares['one_view']:.1%}; "
        f"not read back {shares['unread']:.1%}",
    ]


def _labels(reports: Sequence[EpisodeReport]) -> list[str]:
    labels = [report.labels for report in reports if report.labels is not None]
    if not labels:
        return []
    apart = [each.disagreement_px for each in labels if each.disagreement_px is not None]
    views = f", views {np.median(apart):.2f} pixels apart" if apart else ""
    return [
        f"  labels     {counted(len(labels), 'episode')}: {np.mean([each.valid for each in labels]):.1%} of "
        f"the frames measured, median confidence {np.median([each.confidence for each in labels]):.2f}{views}"
    ]


def _violations(bad: Sequence[EpisodeReport]) -> str:
    lines = [f"  {r.file}, key {r.key!r}: {what}" for r in bad for what in r.violations]
    more = [f"  ... and {len(lines) - _SHOWN} more, see inspection.json"] if len(lines) > _SHOWN else []
    return "\n".join([f"violations in {counted(len(bad), 'episode')}:", *lines[:_SHOWN], *more])


def _print_camera_check(recordings: str, place: AnyPath, seen: str | None, max_pixels: float) -> None:
    try:
        source = open_recordings(recordings)
    except (ValueError, ShardError) as error:
        raise InvalidValue(
            f"{error}\nCameras are checked in folders of shards and of plain recordings "
            "(docs/shards.md); bring other layouts into shards first: ai-wam convert"
        ) from error
    found = check_cameras(source, place, seen)
    print(f"overlays of {painted_frames(source, seen)}: {place}; the cross has to lie on the tool's tip")
    for view, check in found.items():
        print(f"  {view:<20} {_said(check, max_pixels)}")
    if bad := [view for view, check in found.items() if not check.passes(max_pixels)]:
        raise CannotContinue(
            f"cameras of {', '.join(bad)} miss the tool by more than {max_pixels:g} pixels in the median, or "
            "have it behind them or no calibration: check K and the picture size it belongs to, "
            "which way the pose maps, the axes (OpenCV's), metres, and docs/data_problems.md"
        )


def _said(check: ViewCheck, max_pixels: float) -> str:
    apart = ""
    if check.distances:
        middle, worst = np.median(check.distances), max(check.distances)
        apart = f"{counted(len(check.distances), 'point')}: median {middle:.1f}, worst {worst:.1f} pixels; "
    if (lag := check.lag(max_pixels)) is not None:
        when = f"{counted(abs(lag[0]), 'frame')} {'later' if lag[0] > 0 else 'earlier'}"
        apart += f"with the poses of {when}: median {lag[1]:.1f}; "
    frames = counted(check.frames, "frame")
    return f"{apart}{frames}, {check.placeless} with the tool behind the camera or no calibration"
