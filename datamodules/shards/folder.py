"""Random access to the members of a finished folder of tar shards, on this machine or in a store."""

import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from upath import UPath

from ai_wam.errors import FileTrouble, InvalidValue
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.read_errors import FORMAT_FAULTS, fault
from datamodules.shards.format import (
    INDEX,
    EpisodeEntry,
    ShardEntry,
    ShardError,
    check_schema,
    index_name,
    is_checksum,
    is_shard_name,
    read_json,
)
from datamodules.shards.index_table import EpisodeTable

T = TypeVar("T")
_FILES_KEPT = 64


def _one(value: Any) -> int:
    return 1


class Recent(Generic[T]):
    """A least-recently-used cache.

    Args:
        budget: largest total cost of the values kept; the last one is always kept.
        cost: of one value; 1 by default, so that the budget is a number of values.
    """

    def __init__(self, budget: int, cost: Callable[[T], int] = _one) -> None:
        self._budget, self._cost, self._spent = budget, cost, 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value for this key, made by `make` where it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        self._spent += self._cost(value)
        while self._spent > self._budget and len(self._kept) > 1:
            self._spent -= self._cost(self._kept.popitem(last=False)[1])
        return value


class _LocalFile:
    """An open shard; `pread` keeps no position, so forked workers may share it."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:  # reads do not know the file's name
            raise FileTrouble(
                error.errno, f"{error.strerror}; copy this file again", str(self._path)
            ) from error

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _RemoteFile:
    """A shard in a store: one range request per read, over connections of this process's own."""

    def __init__(self, path: UPath) -> None:
        self._address, self._options = str(path), dict(path.storage_options)
        self._connect()  # anew: the path may come from before a fork, which connections do not survive

    def _connect(self) -> None:
        self._path, self._process = UPath(self._address, **self._options), os.getpid()

    def read(self, offset: int, size: int) -> bytes:
        if self._process != os.getpid():
            self._connect()
        return bytes(self._path.fs.cat_file(self._path.path, start=offset, end=offset + size))


_LINE = ("file", "sha256", "bytes")  # keys that an index must have for a shard


def _is_line(line: object) -> bool:
    return (
        isinstance(line, dict)
        and is_shard_name(line.get("file"))
        and is_checksum(line.get("sha256"))
        and isinstance(line.get("bytes"), int)
    )


class ShardFolder:
    """The index of a finished folder, and its members' bytes.

    Attributes:
        folder: its path.
        episodes: the index's entries.
        settings: of the data set's source.
        shards: number of them; one whose episodes were all left out counts.
        digest: a hash of all shards' checksums; equal for copies of the same shards.
        command: what writes such folders, for error messages.
    """

    command: ClassVar[str]

    def __init__(self, folder: str | AnyPath, verify: bool = False) -> None:
        """Read the index.

        Args:
            folder: a path, or an address that fsspec knows such as s3://bucket/folder.
            verify: read every shard whole and compare its checksum.

        Raises:
            ShardError: missing, unfinished, of another schema, or damaged.
        """
        self.folder = as_path(folder)
        self.episodes = EpisodeTable()
        index = self._read_index()
        self.settings, lines = index["settings"], index["shards"]
        self.shards = len(lines)
        self.digest = hashlib.sha256("".join(line["sha256"] for line in lines).encode()).hexdigest()
        keys: set[str] = set()
        for line in lines:
            shard = ShardEntry.read(self.folder / index_name(line["file"]))
            self._check_shard(shard, line, verify)
            self._check_episodes(shard, keys)
            self.episodes += shard.episodes
        if not self.episodes:
            raise ShardError(f"{self.folder} holds no episode; copy it again, or record it anew")
        self._forget()

    def __len__(self) -> int:
        return len(self.episodes)

    def __getstate__(self) -> dict[str, Any]:
        """The state without codecs and caches, which stay in their process."""
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        """Begin with empty caches."""
        self._files: Recent[_LocalFile | _RemoteFile] = Recent(_FILES_KEPT)

    def read(self, index: int, name: str) -> bytes:
        """A member of episode `index`, checked against its CRC.

        Raises:
            ShardError: the shard is damaged.
        """
        entry = self.episodes[index]
        if name not in entry.members:
            raise self.damaged(entry, name, "the index does not list it")
        member = entry.members[name]
        data = self.bytes(entry, member.offset, member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc32:
            raise self.damaged(entry, name, f"{len(data)} of {member.size} bytes, or the wrong ones")
        return data

    def check_episode(self, entry: EpisodeEntry) -> None:
        """Hook: refuse an index entry that is impossible for this kind of folder.

        Raises:
            ValueError: what is wrong with it.
        """

    @contextmanager
    def naming(self, entry: EpisodeEntry, name: str) -> Iterator[None]:
        """Context that turns errors of reading a member into a `ShardError` that names the member.

        Raises:
            ShardError: instead of any other error of the data.
        """
        try:
            yield
        except ShardError:
            raise
        except FORMAT_FAULTS as error:
            raise self.damaged(entry, name, fault(error)) from error

    def bytes(self, entry: EpisodeEntry, offset: int, size: int) -> bytes:
        """Bytes of the shard that holds an episode."""
        return self._files.get(entry.file, lambda: _opened(self.folder / entry.file)).read(offset, size)

    def damaged(self, entry: EpisodeEntry, name: str, what: str) -> ShardError:
        """The error of a damaged member."""
        return ShardError(
            f"{self.folder / entry.file}, key {entry.key!r}, member {name!r} is damaged: {what}. "
            f"Delete that shard and run the same `{self.command}` again, which writes it anew; or pass "
            "on_error: skip."
        )

    def _read_index(self) -> dict[str, Any]:
        again, folder = f"`{self.command} --out {self.folder} ...`", self.folder
        path = folder / INDEX
        if not path.exists():
            what = f"has no {INDEX}" if folder.is_dir() else "is not a folder"
            raise ShardError(f"{folder} {what}; record episodes into it with {again}, or correct the path")
        index = read_json(path)
        check_schema(index, path)
        if not index.get("complete"):
            done = len(list(folder.glob("shard-*.tar")))
            raise ShardError(
                f"{folder} is unfinished ({done} shards so far); run the same {again} again to resume"
            )
        lines = index.get("shards")
        if (
            not isinstance(lines, list)
            or not all(map(_is_line, lines))
            or not isinstance(index.get("settings"), dict)
        ):
            what = f"settings, or {', '.join(_LINE)} of a shard"
            raise ShardError(f"{path} lacks {what}; copy it again, or write it anew: {again}")
        if len({line["file"] for line in lines}) < len(lines):
            raise ShardError(f"{path} lists a shard twice; copy it again, or write it anew: {again}")
        return index

    def _check_episodes(self, shard: ShardEntry, keys: set[str]) -> None:
        """Check a shard's entries; `keys` collects those of all shards so far."""
        path = self.folder / index_name(shard.file)
        try:
            for entry in shard.episodes:
                if entry.key in keys:
                    raise InvalidValue(f"episode {entry.key!r} is listed twice in the index")
                keys.add(entry.key)
                self.check_episode(entry)
        except InvalidValue as error:
            raise ShardError(f"{path}: {error}; copy the folder again, or write it anew") from error

    def _check_shard(self, shard: ShardEntry, line: Mapping[str, Any], verify: bool) -> None:
        path = self.folder / shard.file
        if shard.file != line["file"]:
            raise ShardError(f"{self.folder / index_name(line['file'])} is of {shard.file}; copy it again")
        again = f"Copy it again, or delete it and run the same `{self.command}` again, which writes it anew."
        if not path.is_file():
            raise ShardError(f"{path} is {'no file' if path.exists() else 'missing'}. {again}")
        size = path.stat().st_size
        if size != shard.bytes or line["bytes"] != shard.bytes:
            raise ShardError(f"{path} has {size} bytes, its index says {shard.bytes}. {again}")
        if line["sha256"] != shard.sha256:
            raise ShardError(
                f"{self.folder / INDEX} and {index_name(shard.file)} have different checksums of "
                f"{shard.file}; copy the folder again"
            )
        if verify:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(cast("Any", stream), "sha256").hexdigest()
            if digest != shard.sha256:
                raise ShardError(f"{path} has the checksum {digest}, its index says {shard.sha256}. {again}")


def _opened(path: AnyPath) -> _LocalFile | _RemoteFile:
    return _LocalFile(path) if isinstance(path, Path) else _RemoteFile(path)
