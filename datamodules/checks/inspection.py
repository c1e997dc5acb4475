"""Inspects every episode of a folder of shards: contents, damage, and a round trip through action images.

A *violation* breaks an invariant of docs/shards.md or makes an episode useless for action images; a *note* is
something that a user should know and may accept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer, tool_points
from ai_wam.camera_checks import check_intrinsics
from ai_wam.cameras import Cameras, CropResize
from ai_wam.episodes import Labels
from ai_wam.errors import InvalidValue
from ai_wam.poses import geodesic_angle, rotation_from_quaternion
from ai_wam.video import VideoTable
from datamodules.checks.wrong_units import Bounds, implausible
from datamodules.reading.pictures_and_text import HAND
from datamodules.shards.format import ShardError
from datamodules.shards.reader import EpisodeHeader, ShardSet

_MOVED = 0.05  # metres the tool travels before a camera called after a hand must have moved too


@dataclass(frozen=True)
class Limits:
    """Limits beyond which an episode has a violation.

    Attributes:
        off_screen: largest share of frames whose tool centre point no camera sees.
        one_view: largest share of frames whose tool a single camera sees at most, though there are several.
        residual_mm: largest median distance between actions and what their action images decode to.
        unread: largest share, of the frames whose tool two cameras see, that cannot be decoded.
    """

    off_screen: float = 0.5
    one_view: float = 0.5
    residual_mm: float = 10.0
    unread: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.off_screen, self.one_view, self.unread)
        if not (all(0 <= share <= 1 for share in shares) and self.residual_mm > 0):
            raise InvalidValue(
                f"{self}: off_screen, one_view and unread must lie in [0, 1] and residual_mm above 0"
            )


@dataclass(frozen=True)
class RoundTrip:
    """The result of drawing an episode's actions and decoding them again.

    Attributes:
        frames: frames tried, evenly spread.
        off_screen: of those, with the tool centre point in no camera's picture, and
        one_view: in a single one, and
        unread: that were not decoded, and
        lost: of these, with the tool in two pictures or more.
        median_mm: of the distances where decoded; None if nothing was.
        worst_mm: the largest of them.
        worst_degrees: the largest rotation between them.
    """

    frames: int
    off_screen: int
    one_view: int
    unread: int
    lost: int
    median_mm: float | None
    worst_mm: float | None
    worst_degrees: float | None


@dataclass(frozen=True)
class LabelReport:
    """Validity and confidence of an episode's labels.

    Attributes:
        valid: share of frames whose pose was measured.
        confidence: the median.
        disagreement_px: the median of the valid frames; None if none is.
    """

    valid: float
    confidence: float
    disagreement_px: float | None

    @classmethod
    def of(cls, labels: Labels) -> "LabelReport":
        """The medians."""
        known = labels.disagreement_px[labels.valid]
        middle = float(np.median(known)) if len(known) else None
        return cls(float(labels.valid.mean()), float(np.median(labels.confidence)), middle)


@dataclass(frozen=True)
class EpisodeReport:
    """The inspection's result for one episode.

    Attributes:
        key: its name.
        file: its shard.
        frames: number of frames.
        hz: frames per second.
        views: height and width by camera name.
        instructions: its phrasings.
        low: smallest x, y, z and openness; None without actions.
        high: the largest.
        first_openness: of its first frame.
        round_trip: None without actions, or where the episode is damaged.
        labels: medians of what goes with labeled actions; None where there are none.
        violations: a sentence each; empty for a good episode.
        notes: a sentence each.
    """

    key: str
    file: str
    frames: int
    hz: float
    views: Mapping[str, tuple[int, int]]
    instructions: tuple[str, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    first_openness: float | None
    round_trip: RoundTrip | None
    labels: LabelReport | None
    violations: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.frames / self.hz

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def inspect_episodes(
    shards: ShardSet,
    tokenizer: ActionImageTokenizer,
    size: tuple[int, int],
    samples: int,
    limits: Limits,
    bounds: Bounds | None = None,
) -> Iterator[EpisodeReport]:
    """Inspect every episode, one after the other.

    Args:
        shards: the set.
        tokenizer: draws and reads the actions.
        size: height and width of its action images.
        samples: frames of each episode that go through it, evenly spread.
        limits: when an episode is a violation.
        bounds: what is plausible; the usual ones if left out.
    """
    if samples < 1:
        raise InvalidValue(f"samples is {samples}, must be at least 1")
    for index in range(len(shards)):
        yield _inspect(shards, index, tokenizer, size, samples, limits, bounds or Bounds())


def chosen_frames(frames: int, count: int) -> list[int]:
    """Up to `count` frames of an episode, evenly spread, both ends included."""
    return np.unique(np.linspace(0, frames - 1, min(count, frames)).round().astype(int)).tolist()


def fitted_cameras(
    shards: ShardSet, index: int, size: tuple[int, int], frames: Sequence[int]
) -> dict[str, Cameras]:
    """Each view's cameras at some frames, for pictures of another size."""
    entry, header = shards.episodes[index], shards.header(index)
    fitted = {}
    for view, original in entry.views.items():
        k, e = (torch.from_numpy(m[view]) for m in (header.intrinsics, header.world_from_camera))
        at = list(frames) if len(k) > 1 else [0] * len(frames)
        fitted[view] = CropResize(original, size).cameras(Cameras(k[at], e[at]))
    return fitted


def stacked(cameras: Mapping[str, Cameras]) -> Cameras:
    """Cameras "t" of several views as one of "1 v t"."""
    names = ("intrinsics", "world_from_camera")
    return Cameras(*(torch.stack([getattr(each, name) for each in cameras.values()])[None] for name in names))


def pose_errors(
    found: Float[Tensor, "t 8"], drawn: Float[Tensor, "t 8"]
) -> tuple[Float[Tensor, "t"], Float[Tensor, "t"]]:
    """Millimetres and degrees between poses, in float64."""
    found, drawn = found.double(), drawn.double()
    angle = geodesic_angle(*(rotation_from_quaternion(each[:, 3:7]) for each in (found, drawn)))
    return 1000 * (found - drawn)[:, :3].norm(dim=-1), torch.rad2deg(angle)


def _inspect(
    shards: ShardSet,
    index: int,
    tokenizer: ActionImageTokenizer,
    size: tuple[int, int],
    samples: int,
    limits: Limits,
    bounds: Bounds,
) -> EpisodeReport:
    entry = shards.episodes[index]
    violations: list[str] = []
    notes: list[str] = []
    instructions: tuple[str, ...] = ()
    low = high = first = trip = labels = None
    try:
        header = shards.header(index)
        instructions = header.instructions
        violations += [
            *_videos(shards, index),
            *_matrices(header, entry.views),
        ]
        notes += _lost_calibrations(header)
        if header.labels is not None:
            header.labels.check(entry.frames)
            labels = LabelReport.of(header.labels)
        if header.actions is None:
            notes.append("no actions were recorded: usable for video only")
        elif not violations:
            low, high = (tuple(f(header.actions[:, [0, 1, 2, 7]], 0).tolist()) for f in (np.min, np.max))
            first = float(header.actions[0, 7])
            violations += _still_hands(header)
            violations += [each.text for each in implausible(header, entry.hz, bounds)]
            frames = [f for f in chosen_frames(entry.frames, samples) if _calibrated(header, f)]
            if not frames:
                notes.append("no view has a calibration: usable for video only")
            else:
                cameras = fitted_cameras(shards, index, size, frames)
                trip = round_trip(torch.from_numpy(header.actions[frames]), cameras, tokenizer, size)
                violations += _limit_violations(trip, limits, len(cameras))
            if len(entry.views) == 1:
                notes.append("one view only: its action images cannot be decoded")
    except (ShardError, ValueError, KeyError, OSError) as error:
        violations.append(str(error))
    return EpisodeReport(
        entry.key, entry.file, entry.frames, entry.hz, entry.views, instructions, low, high, first,
        trip, labels, tuple(violations), tuple(notes),
    )  # fmt: skip


def round_trip(
    actions: Float[Tensor, "t 8"],
    cameras: Mapping[str, Cameras],
    tokenizer: ActionImageTokenizer,
    size: tuple[int, int],
) -> RoundTrip:
    """Draw actions into all views and decode them again."""
    rig = stacked(cameras)
    seen = _seen(actions, rig[0], tokenizer, size).sum(0)
    decoded = tokenizer.decode(tokenizer.encode(actions[None], rig, size), rig)
    valid = decoded.valid[0]
    distance, angle = pose_errors(decoded.actions[0][valid], actions[valid])
    any_read = bool(valid.any())
    return RoundTrip(
        frames=len(actions),
        off_screen=int((seen == 0).sum()),
        one_view=int((seen == 1).sum()),
        unread=int((~valid).sum()),
        lost=int((~valid & (seen >= 2)).sum()),
        median_mm=float(distance.median()) if any_read else None,
        worst_mm=float(distance.max()) if any_read else None,
        worst_degrees=float(angle.max()) if any_read else None,
    )


def _seen(
    actions: Float[Tensor, "t 8"], cameras: Cameras, tokenizer: ActionImageTokenizer, size: tuple[int, int]
) -> Bool[Tensor, "v t"]:
    """Whether each view's picture shows the tool centre point, by frame."""
    points = tool_points(actions.double(), tokenizer.axis_length)[:, :1]
    visible: Tensor = cameras.to(torch.float64).project(
        points.expand(len(cameras.intrinsics), -1, -1, -1), size
    )[2]
    return visible[..., 0]


def _videos(shards: ShardSet, index: int) -> list[str]:
    """Violations of the videos; a video must have as many frames as the episode."""
    entry, found = shards.episodes[index], []
    for view in entry.views:
        table = VideoTable.of(shards.read(index, f"{view}.mp4"))
        count = len(table)
        try:
            table.check_times(entry.hz)
        except ValueError as error:
            found.append(f"member '{view}.mp4': {error}")
        if count != entry.frames:
            found.append(f"member '{view}.mp4' holds {count} frames, the episode has {entry.frames}")
        shards.images(index, view, [0, entry.frames - 1])
    return found


def _matrices(header: EpisodeHeader, views: Mapping[str, tuple[int, int]]) -> list[str]:
    found = []
    for view, k in header.intrinsics.items():
        try:
            check_intrinsics(k[np.isfinite(k).all((1, 2))], views[view], f"view {view!r}")
        except ValueError as error:
            found.append(f"view {view!r}: {error}")
    return found


def _finite(header: EpisodeHeader, view: str) -> Bool[np.ndarray, "_"]:
    k, e = header.intrinsics[view], header.world_from_camera[view]
    return np.isfinite(k).all((1, 2)) & np.isfinite(e).all((1, 2))


def _calibrated(header: EpisodeHeader, frame: int) -> bool:
    """Whether any view has a calibration at a frame."""
    known = (_finite(header, view) for view in header.intrinsics)
    return any(bool(finite[frame if len(finite) > 1 else 0]) for finite in known)


def _lost_calibrations(header: EpisodeHeader) -> list[str]:
    notes = []
    for view in header.intrinsics:
        finite = _finite(header, view)
        if not finite.all():
            notes.append(f"view {view!r} lost its calibration in {(~finite).mean():.0%} of the frames")
    return notes


def _still_hands(header: EpisodeHeader) -> list[str]:
    """Violations of cameras that are named after a hand and stand still while the tool moves."""
    travelled = 0.0 if header.actions is None else float(np.ptp(header.actions[:, :3], axis=0).max())
    if travelled < _MOVED:
        return []
    return [
        f"view {view!r} is named after a hand, but its camera stands still while the tool moves "
        f"{1000 * travelled:.0f} mm; record its pose at every frame, or rename it"
        for view, poses in header.world_from_camera.items()
        if HAND.search(view) and len(poses) == 1
    ]


def _limit_violations(trip: RoundTrip, limits: Limits, views: int) -> list[str]:
    """Sentences on the limits that a round trip exceeds."""
    found = []
    few = trip.off_screen + trip.one_view
    hidden = trip.off_screen > limits.off_screen * trip.frames
    if views > 1 and not hidden and few > limits.one_view * trip.frames:
        found.append(
            f"one camera of {views} at most sees the tool in {few} of {trip.frames} frames (limit "
            f"{limits.one_view:.0%}), so their action images cannot be read back; check each camera's "
            "pose, or turn the cameras to where the tool works"
        )
    if hidden:
        found.append(
            f"no camera sees the tool in {trip.off_screen} of {trip.frames} frames (limit "
            f"{limits.off_screen:.0%}); are the poses in the cameras' world frame, and the axes OpenCV's?"
        )
    visible = trip.frames - trip.off_screen - trip.one_view
    if trip.lost > limits.unread * visible:
        found.append(
            f"action images of {trip.lost} of {visible} frames whose tool two cameras see cannot be read "
            f"back (limit {limits.unread:.0%}); are the calibrations and the poses of one world?"
        )
    if trip.median_mm is not None and trip.median_mm > limits.residual_mm:
        found.append(
            f"action images decode {trip.median_mm:.1f} mm off the actions in the median (limit "
            f"{limits.residual_mm:g} mm); more views, or larger pictures"
        )
    return found
