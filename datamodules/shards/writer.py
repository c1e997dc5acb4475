"""Writes episodes into WebDataset tar shards; an interrupted run resumes at the first missing shard.

A shard exists when its own index does: the tar is written under a temporary name, renamed, and its index
written last. The bytes depend on the episodes and the settings alone, not on the number of worker processes.
"""

import hashlib
import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from webdataset import TarWriter

from ai_wam.episodes import Episode, SourceCard
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import PARTIAL, AnyPath, as_path, publish, write_json
from ai_wam.files.json_yaml import parse_json
from ai_wam.video import VideoEncoding
from datamodules.shards.data_card import write_card
from datamodules.shards.episode_encoding import EpisodeMembers, encode_episode
from datamodules.shards.format import (
    INDEX,
    SCHEMA,
    EpisodeEntry,
    LeftOut,
    Member,
    ShardEntry,
    ShardError,
    check_schema,
    index_name,
    read_json,
    shard_name,
)
from datamodules.shards.lock import lock_folder, unlock_folder
from datamodules.shards.source_settings import differences

Made: TypeAlias = EpisodeMembers | LeftOut


class ShardFile:
    """A shard being written; it is not visible before `commit`."""

    def __init__(self, folder: AnyPath, number: int) -> None:
        self._folder, self._file = folder, shard_name(number)
        # What goes to a store is written on this machine first. No two writers share an unfinished file.
        work = str(folder) if isinstance(folder, Path) else None
        handle, name = tempfile.mkstemp(dir=work, prefix=self._file + ".", suffix=PARTIAL)
        self._path, self._stream = Path(name), open(handle, "wb")  # noqa: SIM115 - closed by commit or abort
        self._tar: Any = TarWriter(self._stream, user="", group="", mtime=0, encoder=False, compress=False)
        self._episodes: dict[str, EpisodeMembers] = {}
        self._crcs: dict[str, int] = {}
        self._left_out: list[LeftOut] = []

    def __len__(self) -> int:
        return len(self._episodes)

    def add(self, members: EpisodeMembers) -> None:
        """Append an episode.

        Raises:
            ValueError: its key is in the shard already.
            ShardError: the disk is full or gone.
        """
        if members.key in self._episodes:
            raise InvalidValue(
                f"episode {members.key!r} comes twice in {self._file}; keys must be unique in a source"
            )
        with self._writing(f"episode {members.key!r}"):
            self._tar.write({"__key__": members.key, **members.files})
        self._crcs.update({f"{members.key}.{name}": zlib.crc32(data) for name, data in members.files.items()})
        self._episodes[members.key] = replace(members, files={})

    def leave_out(self, episode: LeftOut) -> None:
        """List an episode as left out in the shard's index."""
        self._left_out.append(episode)

    def commit(self) -> ShardEntry:
        """Finish the tar, give it its name and write its index."""
        with self._writing("its end"):
            self._tar.close()
            self._stream.close()
        with self._path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        members = self._members()
        episodes = tuple(
            EpisodeEntry(key, self._file, episode.frames, episode.hz, episode.views, members[key])
            for key, episode in self._episodes.items()
        )
        size = self._path.stat().st_size
        entry = ShardEntry(self._file, size, digest, episodes, tuple(self._left_out))
        with self._writing("the whole"):
            publish(self._path, self._folder / self._file)
            entry.write(self._folder)
        return entry

    def abort(self) -> None:
        """Delete the unfinished file."""
        for part in (self._tar, self._stream):  # the tar flushes into its stream
            with suppress(OSError):  # of a full disk; what is not yet written is thrown away anyway
                part.close()
        self._path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ShardError(
                f"{self._path}: {what} could not be written: {error}. Finished shards are kept; make room "
                "and run the same command again, which resumes there."
            ) from error

    def _members(self) -> dict[str, dict[str, Member]]:
        """The place of every file, by key and by what follows the key."""
        found: dict[str, dict[str, Member]] = {key: {} for key in self._episodes}
        with tarfile.open(self._path) as tar:
            for info in tar:
                key, _, suffix = info.name.partition(".")
                found[key][suffix] = Member(info.offset_data, info.size, self._crcs[info.name])
        return found


class ShardWriter:
    """Writes episodes one after the other, where there is no `EpisodeSource` to get them by number.

    with ShardWriter("data/mine", settings={"robot": "xarm", "session": 3}) as writer:
        for episode in episodes[writer.finished:]:
            writer.write(episode)
    """

    def __init__(
        self,
        folder: str | AnyPath,
        episodes_per_shard: int = 64,
        settings: Mapping[str, Any] | None = None,
        encoding: VideoEncoding | None = None,
        card: SourceCard | None = None,
    ) -> None:
        """Open a folder, new or interrupted.

        Args:
            folder: where the shards go; made if missing.
            episodes_per_shard: episodes in all shards but the last.
            settings: JSON values that identify this data set.
            encoding: how to compress the videos.
            card: for the shards' README.md.

        Raises:
            ShardError: the folder holds another data set, or a finished one.
        """
        if episodes_per_shard < 1:
            raise InvalidValue(f"episodes_per_shard is {episodes_per_shard}, must be at least 1")
        self.folder, self._encoding = as_path(folder), encoding or VideoEncoding()
        self._per_shard, self._card = episodes_per_shard, card or SourceCard()
        self._settings = data_set_settings(settings or {}, episodes_per_shard, self._encoding)
        if (self.folder / INDEX).exists() and read_json(self.folder / INDEX).get("complete"):
            raise ShardError(f"{self.folder} is finished; write into a new folder (`train` takes several)")
        self._shard: ShardFile | None = None
        finished = sum(1 for _ in self.folder.glob("shard-*.json"))
        self._number = open_folder(self.folder, self._settings, finished + 1)[0]

    @property
    def finished(self) -> int:
        """Number of episodes in finished shards, to be skipped when an interrupted run is resumed."""
        return self._number * self._per_shard

    def write(self, episode: Episode) -> None:
        """Append an episode; every `episodes_per_shard` of them finish a shard.

        Raises:
            ValueError: a malformed episode; it is left out of the shard, which stays open.
        """
        self._shard = self._shard or ShardFile(self.folder, self._number)
        self._shard.add(encode_episode(episode, self._encoding))
        if len(self._shard) == self._per_shard:
            self._finish_shard()

    def close(self) -> None:
        """Finish the last shard and the set."""
        if self._shard is not None and len(self._shard):
            self._finish_shard()
        close_folder(self.folder, self._number, self._settings)
        write_card(self.folder, self._card)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.abort()

    def _finish_shard(self) -> None:
        if self._shard is not None:
            self._shard.commit()
            self._shard, self._number = None, self._number + 1


def write_shard(folder: AnyPath, number: int, episodes: Iterable[Made]) -> ShardEntry:
    """Writes a shard atomically: after an error nothing of it is left."""
    shard = ShardFile(folder, number)
    try:
        for members in episodes:
            if isinstance(members, LeftOut):
                shard.leave_out(members)
            else:
                shard.add(members)
        return shard.commit()
    except BaseException:
        shard.abort()
        raise


def data_set_settings(
    source: Mapping[str, Any], episodes_per_shard: int, encoding: VideoEncoding
) -> dict[str, Any]:
    """The settings that all runs into one folder must share, as JSON values.

    Raises:
        TypeError: values that JSON cannot hold.
    """
    settings = {"source": dict(source), "episodes_per_shard": episodes_per_shard, "video": asdict(encoding)}
    return dict(parse_json(json.dumps(settings), "the settings of the data set"))


def open_folder(folder: AnyPath, settings: Mapping[str, Any], shards: int) -> list[int]:
    """Make and lock the folder, or check that it holds this data set; returns the missing shards' numbers.

    The folder is locked from here to `close_folder`.

    Raises:
        ShardError: it holds another data set (the message says what differs), or another run writes into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock_folder(folder)
    path = folder / INDEX
    if path.exists():
        _check_same_settings(folder, read_json(path), settings)
    elif tars := sorted(path.name for path in folder.glob("*.tar")):
        raise ShardError(f"{folder} holds {tars[0]} but no {INDEX}; collect into a new folder")
    remove_unfinished(folder)  # no other process writes here: the folder is locked
    missing = [number for number in range(shards) if not _finished(folder, shard_name(number))]
    if missing:
        write_json(path, {"schema": SCHEMA, "complete": False, "settings": settings, "shards": []})
    return missing


def remove_unfinished(folder: AnyPath) -> None:
    """Remove unfinished files of writers that have ended."""
    for stale in folder.glob(f"*{PARTIAL}"):
        stale.unlink()


def close_folder(folder: AnyPath, shards: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the index of a complete set, and release the folder; returns the index's content.

    Raises:
        ShardError: two shards hold an episode of the same key, or there is no episode.
    """
    entries = [ShardEntry.read(folder / index_name(shard_name(number))) for number in range(shards)]
    seen: dict[str, str] = {}
    for episode in (episode for entry in entries for episode in entry.episodes):
        if episode.key in seen:
            raise ShardError(
                f"{folder}: episode {episode.key!r} is in {seen[episode.key]} and in {episode.file}; keys "
                "must be unique in a source. Delete the folder and collect again with unique keys."
            )
        seen[episode.key] = episode.file
    left_out = [asdict(each) for entry in entries for each in entry.left_out]
    if not seen:
        why = f": all {len(left_out)} were left out, first {left_out[0]['reason']}" if left_out else ""
        raise ShardError(f"{folder}: no episode was written{why}")
    index = {
        "schema": SCHEMA,
        "complete": True,
        "settings": settings,
        "episodes": len(seen),
        "frames": sum(entry.frames for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
        **({"left_out": left_out} if left_out else {}),
        "shards": [entry.summary() for entry in entries],
    }
    write_json(folder / INDEX, index)
    unlock_folder(folder)
    return index


def _finished(folder: AnyPath, file: str) -> bool:
    return (folder / file).exists() and (folder / index_name(file)).exists()


def _check_same_settings(folder: AnyPath, index: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    check_schema(index, folder / INDEX)
    if different := differences(index.get("settings"), settings):
        lines = "\n  ".join(different)
        raise ShardError(
            f"{folder} holds another data set; in the folder != asked for:\n  {lines}\n"
            "Collect into a new folder (`train` takes several), or delete this one."
        )
