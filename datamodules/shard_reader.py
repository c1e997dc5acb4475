"""Reads shards at random: any frame of any episode by its byte offset, without unpacking a tar."""

import hashlib
import io
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from ai_wam.types import Episode, Frame, View
from ai_wam.video import FrameDecoder, VideoTable
from datamodules.shard_format import (
    ACTIONS,
    CAMERAS,
    INDEX,
    META,
    EpisodeEntry,
    ShardEntry,
    ShardError,
    check_schema,
    index_name,
    read_json,
)

T = TypeVar("T")
ROWS_KEPT = 200_000  # of frame tables and of matrices, whatever the episodes' length: some 30 MB each
ROWS_PER_EPISODE = 30  # what an entry costs beside its rows
_FILES_KEPT = 64


def _one(value: Any) -> int:
    return 1


class Recent(Generic[T]):
    """Remembers what was made for the last keys asked for.

    Args:
        budget: what all that is kept may cost together; the last one is always kept.
        cost: of one value; 1 if left out, so that the budget is their number.
    """

    def __init__(self, budget: int, cost: Callable[[T], int] = _one) -> None:
        self._budget, self._cost, self._spent = budget, cost, 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave for this key, now or before."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        self._spent += self._cost(value)
        while self._spent > self._budget and len(self._kept) > 1:
            self._spent -= self._cost(self._kept.popitem(last=False)[1])
        return value


class _File:
    """An open shard; `pread` keeps no position, so forked workers may share it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


@dataclass(frozen=True)
class EpisodeHeader:
    """All of an episode but its pictures.

    Attributes:
        instructions: phrasings of what was to be done.
        provenance: where it comes from.
        actions: pose and openness per frame; None where not recorded.
        intrinsics: K by camera name, one entry if the camera stands still.
        world_from_camera: poses by camera name, as many entries as K.
    """

    instructions: tuple[str, ...]
    provenance: Mapping[str, Any]
    actions: Float[np.ndarray, "t 8"] | None
    intrinsics: Mapping[str, Float[np.ndarray, "_ 3 3"]]
    world_from_camera: Mapping[str, Float[np.ndarray, "_ 4 4"]]


class ShardSet:
    """A finished folder of shards; itself an `EpisodeSource`, so it can be written again in another form.

    Attributes:
        folder: where it lies.
        episodes: what the index says of each.
        digest: a hash of all shards' checksums; equal for copies of the same shards.
    """

    def __init__(self, folder: str | Path, verify: bool = False) -> None:
        """Read the index.

        Args:
            folder: where `ai-wam collect` wrote.
            verify: read every shard whole and compare its checksum.

        Raises:
            ShardError: missing, unfinished, of another schema, or damaged.
        """
        self.folder = Path(folder)
        self.episodes: list[EpisodeEntry] = []
        lines = _read_index(self.folder)["shards"]
        self.digest = hashlib.sha256("".join(line["sha256"] for line in lines).encode()).hexdigest()
        for line in lines:
            shard = ShardEntry.read(self.folder / index_name(line["file"]))
            _check_shard(self.folder / shard.file, shard, line, verify)
            self.episodes += shard.episodes
        self._forget()

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        entry, header = self.episodes[index], self.header(index)
        frames = self._frames(index)
        return Episode(entry.key, frames, header.instructions, entry.hz, header.provenance)

    def __getstate__(self) -> dict[str, Any]:
        """Codecs and caches stay in their process."""
        return {"folder": self.folder, "episodes": self.episodes, "digest": self.digest}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._headers: Recent[EpisodeHeader] = Recent(ROWS_KEPT, _rows)
        self._tables: Recent[VideoTable] = Recent(ROWS_KEPT, len)
        self._files: Recent[_File] = Recent(_FILES_KEPT)
        self._decoder = FrameDecoder()

    def header(self, index: int) -> EpisodeHeader:
        """All of episode `index` but its pictures.

        Raises:
            ShardError: the shard is damaged.
        """
        return self._headers.get(index, lambda: self._read_header(index))

    def images(self, index: int, view: str, frames: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """Pictures of some frames of episode `index`, of which only their packets are read.

        Raises:
            ShardError: the shard is damaged.
        """
        entry = self.episodes[index]
        name = f"{view}.mp4"
        try:
            table = self._tables.get((index, view), lambda: VideoTable.of(self.read(index, name)))
            start = entry.members[name].offset
            return self._decoder.decode(table, lambda at, size: self._bytes(entry, start + at, size), frames)
        except (ValueError, IndexError) as error:
            raise ShardError(self._where(entry, name, str(error))) from error

    def read(self, index: int, name: str) -> bytes:
        """A member of episode `index`, checked against its CRC.

        Raises:
            ShardError: the shard is damaged.
        """
        entry = self.episodes[index]
        member = entry.members[name]
        data = self._bytes(entry, member.offset, member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc32:
            raise ShardError(
                self._where(entry, name, f"{len(data)} of {member.size} bytes, or the wrong ones")
            )
        return data

    def _bytes(self, entry: EpisodeEntry, offset: int, size: int) -> bytes:
        return self._files.get(entry.file, lambda: _File(self.folder / entry.file)).read(offset, size)

    def _where(self, entry: EpisodeEntry, name: str, what: str) -> str:
        return (
            f"{self.folder / entry.file}, key {entry.key!r}, member {name!r} is damaged: {what}. "
            "Delete that shard and run the same `ai-wam collect` again, which writes it anew; or pass "
            "on_error: skip."
        )

    def _read_header(self, index: int) -> EpisodeHeader:
        entry = self.episodes[index]
        meta = json.loads(self.read(index, META))
        actions = np.load(io.BytesIO(self.read(index, ACTIONS))) if ACTIONS in entry.members else None
        with np.load(io.BytesIO(self.read(index, CAMERAS))) as cameras:
            intrinsics = {view: cameras[f"{view}.intrinsics"] for view in entry.views}
            poses = {view: cameras[f"{view}.world_from_camera"] for view in entry.views}
        return EpisodeHeader(tuple(meta["instructions"]), meta["provenance"], actions, intrinsics, poses)

    def _frames(self, index: int) -> Iterator[Frame]:
        entry, header = self.episodes[index], self.header(index)
        for number in range(entry.frames):
            views = {}
            for view in entry.views:
                k, e = header.intrinsics[view], header.world_from_camera[view]
                still = 0 if len(k) == 1 else number
                views[view] = View(self.images(index, view, [number])[0], k[still], e[still])
            yield Frame(views, None if header.actions is None else header.actions[number], number / entry.hz)


def _rows(header: EpisodeHeader) -> int:
    """What a header costs to keep."""
    actions = 0 if header.actions is None else len(header.actions)
    return ROWS_PER_EPISODE + actions + sum(len(k) for k in header.intrinsics.values())


def _read_index(folder: Path) -> dict[str, Any]:
    again = f"`ai-wam collect --out {folder} ...`"
    if not folder.is_dir():
        raise ShardError(
            f"{folder} is not a folder; record episodes into it with {again}, or correct the path"
        )
    path = folder / INDEX
    if not path.exists():
        raise ShardError(
            f"{folder} has no {INDEX}; record episodes into it with {again}, or correct the path"
        )
    index = read_json(path)
    check_schema(index, path)
    if not index.get("complete"):
        done = len(list(folder.glob("shard-*.tar")))
        raise ShardError(
            f"{folder} is unfinished ({done} shards so far); run the same {again} again, it goes on there"
        )
    return index


def _check_shard(path: Path, shard: ShardEntry, line: Mapping[str, Any], verify: bool) -> None:
    again = "Copy it again, or delete it and run the same `ai-wam collect` again, which writes it anew."
    if not path.exists():
        raise ShardError(f"{path} is missing. {again}")
    size = path.stat().st_size
    if size != shard.bytes or line["bytes"] != shard.bytes:
        raise ShardError(f"{path} has {size} bytes, its index says {shard.bytes}. {again}")
    if verify:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not digest == shard.sha256 == line["sha256"]:
            raise ShardError(f"{path} has the checksum {digest}, its index says {shard.sha256}. {again}")
