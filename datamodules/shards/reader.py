"""Random access to episodes in shards: any frame by its byte offset, without unpacking a tar."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from ai_wam.episodes import Episode, Frame, Labels, View
from ai_wam.errors import InvalidValue
from ai_wam.files.read_errors import DATA_FAULTS, of_machine
from ai_wam.utils.brief_repr import BriefRepr
from ai_wam.utils.counted import counted
from ai_wam.video import FrameDecoder, VideoTable
from datamodules.reading.depth import depth_member, read_depth
from datamodules.reading.view_names import Views, chosen_views, unrenamed
from datamodules.shards.episode_decoding import check_entry, read_actions, read_cameras, read_meta
from datamodules.shards.folder import Recent, ShardFolder
from datamodules.shards.format import ACTIONS, CAMERAS, LABELS, META, EpisodeEntry
from datamodules.shards.label_members import labels_of_provenance, read_labels

T = TypeVar("T")
ROWS_KEPT = 200_000  # of frame tables and of matrices, whatever the episodes' length: some 30 MB each
DEPTH_KEPT = 64_000_000  # bytes
ROWS_PER_EPISODE = 30  # cost of an entry in addition to its rows


@dataclass(frozen=True, repr=False)
class EpisodeHeader(BriefRepr):
    """All of an episode but its pictures.

    Attributes:
        instructions: phrasings of what was to be done.
        provenance: where it comes from.
        actions: pose and openness per frame; None where not recorded.
        intrinsics: K by camera name, one entry if the camera stands still.
        world_from_camera: poses by camera name, as many entries as K.
        labels: validity and confidence of labeled actions; None where actions were measured, or are missing.
    """

    instructions: tuple[str, ...]
    provenance: Mapping[str, Any]
    actions: Float[np.ndarray, "t 8"] | None
    intrinsics: Mapping[str, Float[np.ndarray, "_ 3 3"]]
    world_from_camera: Mapping[str, Float[np.ndarray, "_ 4 4"]]
    labels: Labels | None = None


class ShardSet(ShardFolder):
    """Recorded episodes; itself an `EpisodeSource`, so they can be written again in another form."""

    command = "ai-wam collect` or `ai-wam convert"

    def check_episode(self, entry: EpisodeEntry) -> None:
        """Check that an episode has all members, large enough for its frames."""
        check_entry(entry)

    def __repr__(self) -> str:
        views = sorted({view for entry in self.episodes for view in entry.views})
        frames = sum(entry.frames for entry in self.episodes)
        counts = f"{counted(len(self), 'episode')}, {counted(frames, 'frame')}"
        return f"ShardSet({str(self.folder)!r}: {counts}, views {views})"

    def __getitem__(self, index: int) -> Episode:
        return self.episode(index)

    def episode(self, index: int, views: Views = None) -> Episode:
        """Episode `index` with some of its views, possibly renamed; other views are not decoded.

        Args:
            index: its number.
            views: such as [front] or {front: top}; all if left out.

        Raises:
            ValueError: a view that it lacks.
        """
        chosen = self.chosen_views(index, views)
        entry, header, frames = self.episodes[index], self.header(index), self._frames(index, chosen)
        return Episode(entry.key, frames, header.instructions, entry.hz, header.provenance, header.labels)

    def chosen_views(self, index: int, views: Views) -> dict[str, str]:
        """New name by view of episode `index`, of the views that are asked for as in `episode`.

        Raises:
            ValueError: a view that it lacks.
        """
        entry = self.episodes[index]
        return chosen_views(views, unrenamed(list(entry.views)), f"episode {entry.key!r}")

    def _forget(self) -> None:
        super()._forget()
        self._headers: Recent[EpisodeHeader] = Recent(ROWS_KEPT, _rows)
        self._tables: Recent[VideoTable] = Recent(ROWS_KEPT, len)
        self._depths: Recent[bytes] = Recent(DEPTH_KEPT, len)
        self._decoder = FrameDecoder()

    def header(self, index: int) -> EpisodeHeader:
        """All of episode `index` but its pictures.

        Raises:
            ShardError: the shard is damaged.
        """
        return self._headers.get(index, lambda: self._read_header(index))

    def captions(self, episodes: int | None = None, skip: bool = False) -> set[str]:
        """All phrasings of the episodes, or of so many of them at most, evenly spread.

        Args:
            episodes: how many are looked at; all if left out.
            skip: leave out episodes that are damaged.

        Raises:
            ShardError: a shard is damaged.
        """
        every, found = 1 if episodes is None else -(-len(self) // episodes), set[str]()
        for index in range(0, len(self), every):
            try:
                found.update(self.header(index).instructions)
            except DATA_FAULTS as error:
                if not skip or of_machine(error):
                    raise
        return found

    def images(self, index: int, view: str, frames: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """Pictures of some frames of episode `index`, of which only their packets are read.

        Raises:
            ShardError: the shard is damaged.
        """
        entry = self.episodes[index]
        name = f"{view}.mp4"
        with self.naming(entry, name):
            data = partial(self.read, index, name)
            table = self._tables.get((index, view), lambda: VideoTable.of(data(), upright=True))
            if table.size != entry.views[view]:
                raise InvalidValue(
                    f"its pictures are {table.size} pixels, the index says {entry.views[view]}"
                )
            if len(table) != entry.frames:
                raise InvalidValue(f"it holds {len(table)} frames, the episode has {entry.frames}")
            start = entry.members[name].offset
            return self._decoder.decode(table, lambda at, size: self.bytes(entry, start + at, size), frames)

    def depth(self, index: int, view: str, frames: Sequence[int]) -> Float[np.ndarray, "t h w"] | None:
        """Metres at some frames of episode `index`; None where depth was not recorded.

        Raises:
            ShardError: the shard is damaged.
        """
        entry, name = self.episodes[index], depth_member(view)
        if name not in entry.members:
            return None
        with self.naming(entry, name):
            member = self._depths.get((index, view), lambda: self.read(index, name))
            return read_depth(member, frames, entry.views[view])

    def _read_header(self, index: int) -> EpisodeHeader:
        entry = self.episodes[index]
        instructions, provenance = self._member(index, META, read_meta)
        actions = self._member(index, ACTIONS, read_actions) if ACTIONS in entry.members else None
        intrinsics, poses = self._member(index, CAMERAS, read_cameras)
        labels = self._labels(index, entry, provenance)
        return EpisodeHeader(instructions, provenance, actions, intrinsics, poses, labels)

    def _member(self, index: int, name: str, parse: Callable[[bytes, EpisodeEntry], T]) -> T:
        """A member, parsed; errors name it."""
        entry, data = self.episodes[index], self.read(index, name)
        with self.naming(entry, name):
            return parse(data, entry)

    def _labels(self, index: int, entry: EpisodeEntry, provenance: Mapping[str, Any]) -> Labels | None:
        if LABELS in entry.members:
            return self._member(index, LABELS, lambda data, entry: read_labels(data, entry.frames))
        with self.naming(entry, META):
            return labels_of_provenance(provenance, entry.frames)

    def _frames(self, index: int, chosen: Mapping[str, str]) -> Iterator[Frame]:
        entry, header = self.episodes[index], self.header(index)
        for number in range(entry.frames):
            views = {}
            for view, ours in chosen.items():
                k, e = header.intrinsics[view], header.world_from_camera[view]
                still = 0 if len(k) == 1 else number
                image, depth = self.images(index, view, [number])[0], self.depth(index, view, [number])
                views[ours] = View(image, k[still], e[still], None if depth is None else depth[0])
            yield Frame(views, None if header.actions is None else header.actions[number], number / entry.hz)


def _rows(header: EpisodeHeader) -> int:
    """What a header costs to keep."""
    actions = 0 if header.actions is None else len(header.actions)
    return ROWS_PER_EPISODE + actions + sum(len(k) for k in header.intrinsics.values())
