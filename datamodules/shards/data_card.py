"""The data card: a README.md in the folder of shards that says what they hold and where it comes from.

Everything in it is read back from the finished shards, except what only the source knows (`SourceCard`).
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import yaml

from ai_wam.episodes import SourceCard
from ai_wam.files.atomic import AnyPath, write_text
from ai_wam.utils.counted import counted
from datamodules.shards.format import LeftOut
from datamodules.shards.reader import EpisodeHeader, ShardSet

CARD = "README.md"
_UNKNOWN = "unknown"
_NO_DEFECTS = "None was stated, and the episodes themselves show none."
_SHOWN = 20  # tasks and captions in full
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class _Rig:
    """Counts of one camera over all episodes."""

    episodes: int = 0
    moving: int = 0
    lost: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    angles: list[float] = field(default_factory=list)

    def add(self, size: tuple[int, int], k: np.ndarray, poses: np.ndarray) -> None:
        finite = np.isfinite(k).all((1, 2)) & np.isfinite(poses).all((1, 2))
        self.episodes += 1
        self.moving += len(poses) > 1
        self.lost += not finite.all()
        self.sizes[f"{size[0]}x{size[1]}"] += 1
        if finite.any():
            focal = abs(float(k[finite.argmax(), 0, 0]))
            self.angles.append(float(np.degrees(2 * np.arctan2(size[1] / 2, focal))))

    def row(self, name: str) -> str:
        angles = f"{min(self.angles):.0f} to {max(self.angles):.0f}" if self.angles else "-"
        sizes = ", ".join(self.sizes)
        return f"| {name} | {self.episodes} | {sizes} | {angles} | {self.moving} | {self.lost} |"


@dataclass
class _Tally:
    """Counts over all episodes."""

    seconds: float = 0.0
    without_actions: int = 0
    rates: Counter[float] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    rigs: dict[str, _Rig] = field(default_factory=dict)

    @classmethod
    def of(cls, shards: ShardSet) -> "_Tally":
        tally = cls()
        for index, entry in enumerate(shards.episodes):
            header = shards.header(index)
            tally.seconds += entry.frames / entry.hz
            tally.rates[entry.hz] += 1
            tally._add(header)
            for view, size in entry.views.items():
                rig = tally.rigs.setdefault(view, _Rig())
                rig.add(size, header.intrinsics[view], header.world_from_camera[view])
        return tally

    def _add(self, header: EpisodeHeader) -> None:
        origin = header.provenance
        self.without_actions += header.actions is None
        self.captions.update(header.instructions)
        self.sources[str(origin.get("source", _UNKNOWN))] += 1
        for view, verdict in origin.get("calibration", {}).items():
            if not verdict["kept"]:
                self.refused[f"calibration of {view}: {verdict['why']}"] += 1
        for counter, names in ((self.licences, ("licence", "license")), (self.tasks, ("task",))):
            counter.update(str(origin[name]) for name in names if origin.get(name) is not None)


def write_card(folder: AnyPath, card: SourceCard) -> None:
    """Write the card of a finished folder of shards.

    Raises:
        ShardError: the folder is not finished, or damaged.
    """
    shards = ShardSet(folder)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    write_text(folder / CARD, render(shards, index, card))


def render(shards: ShardSet, index: Mapping[str, Any], card: SourceCard) -> str:
    """The card: YAML for machines, then Markdown."""
    tally = _Tally.of(shards)
    title = card.title or ", ".join(tally.sources)
    licence = card.licence if card.licence != _UNKNOWN else _only(tally.licences)
    head = {
        "pretty_name": title,
        "license": licence,
        "task_categories": ["robotics"],
        "tags": ["ai-wam", "webdataset", "action-images"],
        "size_categories": [next((name for limit, name in _SIZES if len(shards) < limit), "n>1M")],
        "ai_wam": {
            "schema": index["schema"],
            "episodes": index["episodes"],
            "frames": index["frames"],
            "hours": round(tally.seconds / 3600, 4),
            "hz": sorted(tally.rates),
            "views": sorted(tally.rigs),
            "sources": sorted(tally.sources),
        },
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {title}",
        _counts(index, tally),
        _sources(card, licence, tally),
        _rigs(tally),
        _list("Tasks", tally.tasks) + _list("Captions", tally.captions),
        _defects(card, tally, len(shards)),
        _list("Refused by the source's tests", tally.refused) + _left_out(index),
        "## How it was made\n\nFilters and settings of the source and of the recording:\n\n"
        f"```json\n{json.dumps(index['settings'], indent=1)}\n```",
        f"Look into it with `ai-wam inspect` and this folder; the format is schema {index['schema']} of "
        "ai-wam's shards: WebDataset tars, one episode per key.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def merged(asked: SourceCard | None, own: SourceCard | None) -> SourceCard:
    """The fields of the card asked for; where one is blank, the source's own."""
    blank, own = asdict(SourceCard()), own or SourceCard()
    if asked is None:
        return own
    given = {name: value for name, value in asdict(asked).items() if value != blank[name]}
    return SourceCard(**{**asdict(own), **given})


def _counts(index: Mapping[str, Any], tally: _Tally) -> str:
    rates = ", ".join(f"{hz:g} Hz" for hz in sorted(tally.rates))
    return (
        f"{counted(index['episodes'], 'episode')}, {counted(index['frames'], 'frame')} at {rates}, "
        f"{tally.seconds / 3600:.2f} hours, {index['bytes'] / 1e6:.1f} MB in "
        f"{counted(len(index['shards']), 'shard')}."
    )


def _sources(card: SourceCard, licence: str, tally: _Tally) -> str:
    lines = ["## Sources and licences", "", f"- licence: {licence}"]
    lines += [f"- {name} ({counted(count, 'episode')})" for name, count in tally.sources.most_common()]
    said = tally.licences.most_common()
    lines += [f"- licence of {counted(count, 'episode')}: {name}" for name, count in said]
    lines += [f"- home: {card.homepage}"] * bool(card.homepage)
    lines += [f"- to be cited: {card.citation}"] * bool(card.citation)
    return "\n".join(lines)


def _rigs(tally: _Tally) -> str:
    head = [
        "## Cameras",
        "",
        "| view | episodes | height x width | horizontal angle, degrees | moving | calibration lost |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [rig.row(name) for name, rig in sorted(tally.rigs.items())])


def _list(name: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    lines = [f"- {what!r}: {count}" for what, count in counts.most_common(_SHOWN)]
    more = [f"- and {len(counts) - _SHOWN} more"] * (len(counts) > _SHOWN)
    return "\n".join([f"## {name} ({len(counts)})", "", *lines, *more, "", ""])


def _defects(card: SourceCard, tally: _Tally, episodes: int) -> str:
    found: list[str] = [*card.defects]
    if tally.without_actions:
        found.append(f"{tally.without_actions} of {episodes} episodes have no actions.")
    for name, rig in sorted(tally.rigs.items()):
        if rig.lost:
            found.append(f"View `{name}` lost its calibration in {counted(rig.lost, 'episode')}.")
        if rig.episodes < episodes:
            found.append(f"View `{name}` is missing in {counted(episodes - rig.episodes, 'episode')}.")
    if "" in tally.captions:
        found.append(f"Without a caption: {counted(tally.captions[''], 'episode')}.")
    return "\n".join(["## Known defects", "", *(f"- {line}" for line in found or [_NO_DEFECTS])])


def _left_out(index: Mapping[str, Any]) -> str:
    missing = [f"- {LeftOut(**each)}" for each in index.get("left_out", [])]
    if not missing:
        return ""
    more = [f"- and {len(missing) - _SHOWN} more, see `index.json`"] * (len(missing) > _SHOWN)
    return "\n".join([f"## Left out ({len(missing)})", "", *missing[:_SHOWN], *more])


def _only(licences: Counter[str]) -> str:
    """The episodes' licence if they agree on one."""
    return next(iter(licences)) if len(licences) == 1 else _UNKNOWN
