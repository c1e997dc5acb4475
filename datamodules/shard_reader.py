"""Reads shards at random: any frame of any episode by its byte offset, without unpacking a tar."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, UInt8

from ai_wam.labels import Labels
from ai_wam.types import Episode, Frame, View
from ai_wam.video import FrameDecoder, VideoTable
from datamodules.depth import depth_member, read_depth
from datamodules.label_members import labels_of_provenance, read_labels
from datamodules.shard_folder import Recent, ShardFolder
from datamodules.shard_format import ACTIONS, CAMERAS, LABELS, META, EpisodeEntry
from datamodules.view_names import Views, as_called, chosen_views

ROWS_KEPT = 200_000  # of frame tables and of matrices, whatever the episodes' length: some 30 MB each
DEPTH_KEPT = 64_000_000  # bytes
ROWS_PER_EPISODE = 30  # what an entry costs beside its rows


@dataclass(frozen=True)
class EpisodeHeader:
    """All of an episode but its pictures.

    Attributes:
        instructions: phrasings of what was to be done.
        provenance: where it comes from.
        actions: pose and openness per frame; None where not recorded.
        intrinsics: K by camera name, one entry if the camera stands still.
        world_from_camera: poses by camera name, as many entries as K.
        labels: how sure a model is of the actions; None where they were measured, or there are none.
    """

    instructions: tuple[str, ...]
    provenance: Mapping[str, Any]
    actions: Float[np.ndarray, "t 8"] | None
    intrinsics: Mapping[str, Float[np.ndarray, "_ 3 3"]]
    world_from_camera: Mapping[str, Float[np.ndarray, "_ 4 4"]]
    labels: Labels | None = None


class ShardSet(ShardFolder):
    """Recorded episodes; itself an `EpisodeSource`, so they can be written again in another form."""

    command = "ai-wam collect"

    def __getitem__(self, index: int) -> Episode:
        return self.episode(index)

    def episode(self, index: int, views: Views = None) -> Episode:
        """Episode `index` with some of its views, perhaps under other names; the rest is not decoded.

        Args:
            index: its number.
            views: such as [front] or {front: top}; all if left out.

        Raises:
            ValueError: a view that it lacks.
        """
        entry, header = self.episodes[index], self.header(index)
        there = as_called(list(entry.views))
        frames = self._frames(index, chosen_views(views, there, f"episode {entry.key!r}"))
        return Episode(entry.key, frames, header.instructions, entry.hz, header.provenance, header.labels)

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

    def captions(self, episodes: int | None = None) -> set[str]:
        """All phrasings of the episodes, or of so many of them at most, evenly spread.

        Raises:
            ShardError: a shard is damaged.
        """
        every = 1 if episodes is None else -(-len(self) // episodes)
        return {text for index in range(0, len(self), every) for text in self.header(index).instructions}

    def images(self, index: int, view: str, frames: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """Pictures of some frames of episode `index`, of which only their packets are read.

        Raises:
            ShardError: the shard is damaged.
        """
        entry = self.episodes[index]
        name = f"{view}.mp4"
        try:
            data = partial(self.read, index, name)
            table = self._tables.get((index, view), lambda: VideoTable.of(data(), upright=True))
            start = entry.members[name].offset
            return self._decoder.decode(table, lambda at, size: self.bytes(entry, start + at, size), frames)
        except (ValueError, IndexError) as error:
            raise self.damaged(entry, name, str(error)) from error

    def depth(self, index: int, view: str, frames: Sequence[int]) -> Float[np.ndarray, "t h w"] | None:
        """Metres at some frames of episode `index`; None where depth was not recorded.

        Raises:
            ShardError: the shard is damaged.
        """
        entry, name = self.episodes[index], depth_member(view)
        if name not in entry.members:
            return None
        try:
            return read_depth(self._depths.get((index, view), lambda: self.read(index, name)), frames)
        except (ValueError, IndexError) as error:
            raise self.damaged(entry, name, str(error)) from error

    def _read_header(self, index: int) -> EpisodeHeader:
        entry = self.episodes[index]
        meta = json.loads(self.read(index, META))
        actions = np.load(io.BytesIO(self.read(index, ACTIONS))) if ACTIONS in entry.members else None
        with np.load(io.BytesIO(self.read(index, CAMERAS))) as cameras:
            intrinsics = {view: cameras[f"{view}.intrinsics"] for view in entry.views}
            poses = {view: cameras[f"{view}.world_from_camera"] for view in entry.views}
        said = meta["provenance"]
        labels = self._read_labels(index, entry) if LABELS in entry.members else labels_of_provenance(said)
        return EpisodeHeader(tuple(meta["instructions"]), said, actions, intrinsics, poses, labels)

    def _read_labels(self, index: int, entry: EpisodeEntry) -> Labels:
        try:
            return read_labels(self.read(index, LABELS))
        except (ValueError, BadZipFile) as error:
            raise self.damaged(entry, LABELS, str(error)) from error

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
