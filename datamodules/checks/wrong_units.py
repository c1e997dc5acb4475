"""Finds implausible numbers, which have another unit, another convention or another rate.

`ai-wam convert` warns of them, `ai-wam inspect` fails. The bounds are wide enough for any usual arm at a
usual table. docs/sources.md lists the mistakes that they do not find.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.errors import InvalidValue
from ai_wam.poses import geodesic_angle, rotation_from_quaternion
from datamodules.shards.reader import EpisodeHeader, ShardSet

_JUMP = 0.1  # metres between two frames, below which no speed is a fault
_TURN = 1.6  # radians between two frames, about a quarter turn
_MOVES = 0.01  # of the gripper's range: less is noise
_SHOWN = 3  # episodes that are named
_CHECKED = 2000  # episodes of a set at most, evenly spread: a tenth of a millisecond each


@dataclass(frozen=True)
class Bounds:
    """Bounds within which the numbers of an episode are plausible.

    Attributes:
        far: metres from the world's origin to the tool, in the median; by the source if left out (`reach`).
        near: metres within which the tool stays around the origin; a robot's base or a table's middle is
            there, and differences of positions stay small.
        camera: metres from a camera to the tool, in the median; by the source if left out.
        behind: share of frames in which the tool lies behind a camera.
        unseen: share of frames in which it lies in no picture; `inspect` has its `limits` for that.
        speed: metres per second of the tool.
        turn: radians per second of the tool, counted where it turns by more than 1.6 between two frames.
        gripper: openness, of a gripper that moves, that is exceeded somewhere in a set, or 1 less of it
            somewhere undercut: fingers open by less than 0.1 m.
    """

    far: float | None = None
    near: float = 0.1
    camera: float | None = None
    behind: float = 0.5
    unseen: float = 0.5
    speed: float = 5.0
    turn: float = 12.0
    gripper: float = 0.1

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value >= 0:
                raise InvalidValue(f"{self}: {each.name} must be at least 0")

    def reach(self, source: str) -> tuple[float, float]:
        """`far` and `camera` for episodes of a source."""
        far, camera = _REACH.get(source, _REACH[""])
        return far if self.far is None else self.far, camera if self.camera is None else self.camera


# `far` and `camera` by the provenance's "source": the Franka reaches 0.9 m from its base, the WidowX 0.7 m;
# RLBench's table stands within 1.5 m of its origin.
_REACH: Mapping[str, tuple[float, float]] = {
    "droid": (1.5, 5.0),
    "bridge": (1.0, 5.0),
    "rlbench": (3.0, 5.0),
    "": (10.0, 10.0),
}
_WAYS: Mapping[str, Mapping[str, str]] = {
    "position": {
        "lerobot": "name the absolute position by `position`, its unit by `metres_per_unit`",
        "folder": "write x, y, z of actions.csv in metres, in the cameras' world",
        "": "give the absolute position in metres, in the cameras' world",
    },
    "camera": {"": "write the camera's pose in metres, in the world of the actions"},
    "view": {"": "check that poses and cameras share one world, which way the poses map, and K"},
    "axes": {"": "OpenCV's axes are x right, y down, z forward; turn y and z of an OpenGL camera"},
    "rate": {
        "lerobot": "correct fps in meta/info.json, `position` or `metres_per_unit`",
        "folder": 'correct "hz" in meta.json or the unit of actions.csv',
        "": "correct the recording's rate, or the unit of the positions",
    },
    "rotation": {
        "lerobot": "set `rotation_as` to how it is written, and `rotation` to its columns",
        "": "check how the rotation is written (order of numbers, radians)",
    },
    "gripper": {
        "lerobot": "set `closed_and_open` to what a closed and an open gripper read",
        "droid": "set `closed_and_open` to what a closed and an open gripper read",
        "folder": "write openness of actions.csv from 0 (closed) to 1 (open)",
        "": "scale the openness to 0 (closed) to 1 (open)",
    },
}


class Finding(NamedTuple):
    """An implausible number.

    Attributes:
        kind: which setting is probably wrong.
        text: what was found, and the way out.
        view: the camera it is about, if it is about one.
    """

    kind: str
    text: str
    view: str = ""


def implausible(header: EpisodeHeader, hz: float, bounds: Bounds) -> list[Finding]:
    """The implausible numbers of one episode; empty for one without actions."""
    if header.actions is None:
        return []
    source = str(header.provenance.get("source", ""))
    positions = header.actions[:, :3].astype(np.float64)
    found = list(_place(positions, bounds, source))
    if header.labels is None:  # of labels, uncertain frames may jump
        found += _motion(header.actions, hz, bounds, source)
    if not any(each.kind == "position" for each in found):
        for view in header.intrinsics:
            found += _camera(view, header.world_from_camera[view], positions, bounds, source)
    return found


def unseen(header: EpisodeHeader, sizes: Mapping[str, tuple[int, int]], bounds: Bounds) -> Iterator[Finding]:
    """A finding if no picture shows the tool centre point in too many frames.

    Args:
        header: of an episode, with actions.
        sizes: height and width of each view's pictures.
        bounds: what is plausible.
    """
    if header.actions is None:
        return
    positions, frames = header.actions[:, :3].astype(np.float64), len(header.actions)
    seen, known = np.zeros(frames, dtype=bool), np.zeros(frames, dtype=bool)
    for view, (h, w) in sizes.items():
        k, poses = header.intrinsics[view], header.world_from_camera[view]
        inside = np.einsum("tji,tj->ti", poses[:, :3, :3], positions - poses[:, :3, 3])
        x, y, z = np.moveaxis(np.einsum("tij,tj->ti", k, inside), 1, 0)
        known |= np.isfinite(z)
        seen |= (z > 0) & (x >= 0) & (y >= 0) & (x <= w * z) & (y <= h * z)
    share = 1 - float(seen[known].mean()) if known.any() else 0.0
    if share > bounds.unseen:
        what = f"no camera sees the tool in {share:.0%} of the frames, more than {bounds.unseen:.0%}"
        yield Finding("view", f"{what} ({_WAYS['view']['']}; `inspect` has --limits.off_screen for it)")


def odd_gripper(ranges: Iterable[tuple[float, float]], bounds: Bounds, source: str) -> list[Finding]:
    """A finding if a set's openness is implausible.

    Args:
        ranges: smallest and largest openness of each episode.
        bounds: what is plausible.
        source: of the set, by its provenance.
    """
    lows, highs = zip(*ranges, strict=True)
    low, high, limit = min(lows), max(highs), bounds.gripper
    if high - low <= _MOVES or (high > limit and low < 1 - limit):
        return []
    what = f"the openness of all episodes lies between {low:.3g} and {high:.3g} of 0 to 1"
    return [_finding("gripper", f"{what}, as a width in metres would", "gripper", source)]


def look_over(shards: ShardSet, bounds: Bounds) -> list[str]:
    """Warnings for the terminal on implausible numbers of a set; checks 2,000 of its episodes at most."""
    found: list[tuple[str, Finding]] = []
    ranges: list[tuple[float, float]] = []
    source = ""
    for index in range(0, len(shards), max(1, -(-len(shards) // _CHECKED))):
        entry, header = shards.episodes[index], shards.header(index)
        odd = implausible(header, entry.hz, bounds) or list(unseen(header, entry.views, bounds))
        found += [(entry.key, each) for each in odd]
        if header.actions is not None:
            ranges.append((float(header.actions[:, 7].min()), float(header.actions[:, 7].max())))
            source = str(header.provenance.get("source", ""))
    if ranges:
        found += [("the whole set", each) for each in odd_gripper(ranges, bounds, source)]
    return list(warnings(found))


def warnings(found: Iterable[tuple[str, Finding]]) -> Iterator[str]:
    """A line for each kind of finding and camera: the episodes that have it, and the first one's text."""
    by_kind: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    for key, finding in found:
        by_kind.setdefault((finding.kind, finding.view), []).append((key, finding))
    for each in by_kind.values():
        keys = list(dict.fromkeys(key for key, _ in each))
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        yield f"warning: {', '.join(keys[:_SHOWN])}{more}: {each[0][1].text}"


def _finding(kind: str, what: str, bound: str, source: str, view: str = "") -> Finding:
    """A finding whose text has both ways out: the setting that corrects it, and the bound that accepts it."""
    ways = _WAYS[kind]
    way = ways.get(source, ways[""])
    text = f"{what} ({way}; where it is right, change `--bounds.{bound}` of ai-wam inspect)"
    return Finding(kind, text, view)


def _place(positions: Float[np.ndarray, "t 3"], bounds: Bounds, source: str) -> Iterator[Finding]:
    distance = np.linalg.norm(positions, axis=1)
    middle, largest, far = float(np.median(distance)), float(distance.max()), bounds.reach(source)[0]
    if not middle <= far:
        what = f"the tool is {middle:.4g} m from the world's origin, more than {far:g} m"
        yield _finding("position", what, "far", source)
    elif not largest >= bounds.near:
        what = f"the tool never leaves {bounds.near:g} m around the world's origin, as differences would"
        yield _finding("position", what, "near", source)


def _motion(actions: Float[np.ndarray, "t 8"], hz: float, bounds: Bounds, source: str) -> Iterator[Finding]:
    if len(actions) < 2:
        return
    steps = np.linalg.norm(np.diff(actions[:, :3].astype(np.float64), axis=0), axis=1)
    fast = (steps > _JUMP) & (steps * hz > bounds.speed)
    if fast.any() and not np.median(np.linalg.norm(actions[:, :3], axis=1)) > bounds.reach(source)[0]:
        at = int(fast.argmax())
        what = f"the tool moves {steps[at]:.3g} m from frame {at} to {at + 1}, {steps[at] * hz:.3g} m/s"
        yield _finding("rate", f"{what}, more than {bounds.speed:g} m/s", "speed", source)
    turns = rotation_from_quaternion(torch.from_numpy(actions[:, 3:7].astype(np.float64)))
    angles = geodesic_angle(turns[1:], turns[:-1]).numpy()
    wild = (angles > _TURN) & (angles * hz > bounds.turn)
    if wild.any():
        at = int(wild.argmax())
        what = f"the tool turns by {np.degrees(angles[at]):.0f} degrees from frame {at} to {at + 1}"
        yield _finding("rotation", what, "turn", source)


def _camera(
    view: str,
    poses: Float[np.ndarray, "_ 4 4"],
    positions: Float[np.ndarray, "t 3"],
    bounds: Bounds,
    source: str,
) -> Iterator[Finding]:
    """Findings of one camera; a lost calibration has none."""
    finite = np.isfinite(poses).all(axis=(1, 2))
    if len(poses) not in (1, len(positions)) or not finite.any():
        return
    finite = finite if len(poses) > 1 else np.ones(len(positions), dtype=bool)
    poses = (poses if len(poses) > 1 else np.broadcast_to(poses, (len(positions), 4, 4)))[finite]
    apart = positions[finite] - poses[:, :3, 3]
    distance, most = float(np.median(np.linalg.norm(apart, axis=1))), bounds.reach(source)[1]
    if not distance <= most:
        what = f"camera {view!r} is {distance:.4g} m from the tool, more than {most:g} m"
        yield _finding("camera", what, "camera", source, view)
        return
    behind = float(((apart * poses[:, :3, 2]).sum(axis=1) <= 0).mean())
    if behind > bounds.behind:
        what = f"the tool lies behind camera {view!r} in {behind:.0%} of the frames"
        yield _finding("axes", what, "behind", source, view)
