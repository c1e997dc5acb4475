"""The shard format: names of files and members, and the JSON of the indices.

docs/shards.md describes it::

    index.json           the whole set: schema, settings of the source, one line per shard
    shard-000000.tar     episodes; per episode `<key>.json`, `<key>.actions.npy`, `<key>.cameras.npz` and
                         `<key>.<view>.mp4`
    shard-000000.json    that shard: size, checksum, and the place of each member of each episode
"""

import math
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ai_wam.errors import InvalidValue, UserError
from ai_wam.files import json_yaml
from ai_wam.files.atomic import AnyPath, write_json
from datamodules.reading.view_names import NAME

SCHEMA = 1
INDEX = "index.json"
META, ACTIONS, CAMERAS, LABELS = "json", "actions.npy", "cameras.npz", "labels.npz"
_MEMBER = re.compile(rf"{NAME.pattern}(\.{NAME.pattern})*")
_BLOCK = tarfile.BLOCKSIZE  # of a tar, and the least distance between two members: a header
_SHARD = re.compile(r"shard-[0-9]{6,}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
LONGEST_NAME = 100  # of a member in a plain (USTAR) tar


class ShardError(UserError, RuntimeError):
    """A folder of shards is missing, unfinished, of another kind or damaged; the message has the way out."""


class Member(NamedTuple):
    """One file inside a tar: its first byte, its length and its CRC-32."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class EpisodeEntry:
    """The index's entry of an episode.

    Attributes:
        key: its name, unique in the set.
        file: name of the shard that holds it.
        frames: number of frames.
        hz: frames per second.
        views: height and width of the pictures by camera name.
        members: places of its files in the tar, by what follows the key in their names.
    """

    key: str
    file: str
    frames: int
    hz: float
    views: Mapping[str, tuple[int, int]]
    members: Mapping[str, Member]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the file's name, which the shard's index has once."""
        return {
            "key": self.key,
            "frames": self.frames,
            "hz": self.hz,
            "views": {name: list(size) for name, size in self.views.items()},
            "members": {name: list(member) for name, member in self.members.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], file: str) -> "EpisodeEntry":
        """The inverse of `to_json`.

        Raises:
            ValueError: values of another kind, or out of range.
        """
        check_name(data["key"], "the key of an episode")
        for view in data["views"]:
            check_name(view, f"episode {data['key']!r}: view")
        entry = cls(
            key=data["key"],
            file=file,
            frames=_whole(data["frames"]),
            hz=_rate(data["hz"]),
            views={name: (_whole(h), _whole(w)) for name, (h, w) in data["views"].items()},
            members={name: Member(*map(_whole, where)) for name, where in data["members"].items()},
        )
        if odd := [name for name in entry.members if not _MEMBER.fullmatch(name)]:
            raise InvalidValue(f"episode {entry.key!r}: {odd[0]!r:.{LONGEST_NAME}} is no member's name")
        if not entry.views:
            raise InvalidValue(f"episode {entry.key!r} has no views")
        sizes = [side for size in entry.views.values() for side in size]
        places = [number for member in entry.members.values() for number in member]
        if min([entry.frames, *sizes]) < 1 or min(places, default=0) < 0 or not 0 < entry.hz < math.inf:
            raise InvalidValue(f"episode {entry.key!r}: frames, rate, sizes or places are out of range")
        return entry


@dataclass(frozen=True)
class LeftOut:
    """An episode of the source that is in no shard, because it could not be read or is malformed.

    Attributes:
        index: its number in the source.
        key: its name, where it could be read so far.
        reason: the error.
    """

    index: int
    key: str | None
    reason: str

    def __str__(self) -> str:
        return f"episode {self.index}{f' ({self.key})' if self.key else ''}: {self.reason}"


@dataclass(frozen=True)
class ShardEntry:
    """The content of a shard's own index.

    Attributes:
        file: name of the tar.
        bytes: its size.
        sha256: its checksum.
        episodes: its episodes.
        left_out: episodes of the source that were left out of it.
    """

    file: str
    bytes: int
    sha256: str
    episodes: tuple[EpisodeEntry, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def frames(self) -> int:
        """Frames of all its episodes, each view's counted once."""
        return sum(episode.frames for episode in self.episodes)

    def summary(self) -> dict[str, Any]:
        """The shard's line in the set's index."""
        return {
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "episodes": len(self.episodes),
            "frames": self.frames,
        }

    def write(self, folder: AnyPath) -> None:
        """Write `shard-….json` next to the tar; from then on the shard counts as finished."""
        episodes = [episode.to_json() for episode in self.episodes]
        content = {**self.summary(), "schema": SCHEMA, "episodes": episodes}
        if self.left_out:
            content["left_out"] = [asdict(each) for each in self.left_out]
        write_json(folder / index_name(self.file), content, indent=None)

    @classmethod
    def read(cls, path: AnyPath) -> "ShardEntry":
        """Read a shard's index.

        Raises:
            ShardError: it is damaged or of another schema.
        """
        data = read_json(path)
        check_schema(data, path)
        try:
            if not is_shard_name(data["file"]):
                raise InvalidValue(f"no shard is called {data['file']!r}, but {shard_name(0)!r} and so on")
            episodes = tuple(EpisodeEntry.from_json(episode, data["file"]) for episode in data["episodes"])
            left_out = tuple(LeftOut(**each) for each in data.get("left_out", []))
            if not is_checksum(data["sha256"]):
                raise InvalidValue(f"the checksum {data['sha256']!r:.{LONGEST_NAME}} is no SHA-256")
            shard = cls(data["file"], _whole(data["bytes"]), data["sha256"], episodes, left_out)
            check_places(shard)
            return shard
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = str(error) if isinstance(error, UserError) else repr(error)
            raise ShardError(
                f"{path} is no shard index: {why}; copy it again, or collect into a new folder"
            ) from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue(f"{value!r:.{LONGEST_NAME}} is no whole number, which is expected here")
    return value


def _rate(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidValue(f"the rate {value!r:.{LONGEST_NAME}} is no number")
    return float(value)


def check_places(shard: ShardEntry) -> None:
    """Check that every member is inside the tar, behind a header of its own.

    Raises:
        ValueError: members beyond the tar's end, or over one another.
    """
    places = sorted(
        (member.offset, member.size, f"{episode.key}.{name}")
        for episode in shard.episodes
        for name, member in episode.members.items()
    )
    end, before = 0, "the beginning of the tar"
    for offset, size, name in places:
        if offset < end + _BLOCK:
            raise InvalidValue(f"member {name!r} at byte {offset} overlaps {before}, which ends at {end}")
        end, before = offset + size, repr(name)
    if end > shard.bytes:
        raise InvalidValue(f"member {before} ends at byte {end}, the tar has {shard.bytes}")


def check_name(name: object, what: str) -> None:
    """Check the name of an episode or view, which becomes part of a file's name.

    Raises:
        ValueError: no text, one with other characters than letters, digits, '-' and '_', or one that is too
            long for a file in a tar.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = f"{name!r:.{LONGEST_NAME}}"
        raise InvalidValue(f"{what} {shown} must be made of letters, digits, '-' and '_' only")
    if len(name) > LONGEST_NAME:
        raise InvalidValue(
            f"{what} {name[:20]!r}... has {len(name)} characters, at most {LONGEST_NAME} are allowed"
        )


def is_shard_name(file: object) -> bool:
    """Whether it is the name of a shard, without a folder: shards are in the folder of their index."""
    return isinstance(file, str) and _SHARD.fullmatch(file) is not None


def is_checksum(value: object) -> bool:
    """Whether it is a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"shard-{number:06d}.tar"


def index_name(file: str) -> str:
    """File name of a shard's own index."""
    return Path(file).with_suffix(".json").name


def check_schema(data: Mapping[str, Any], path: AnyPath) -> None:
    """Refuse an index of another version.

    Raises:
        ShardError: naming both versions.
    """
    if data.get("schema") != SCHEMA:
        raise ShardError(
            f"{path} has schema version {data.get('schema')!r}; this version of ai-wam reads {SCHEMA}. "
            "Install the version that wrote it, or write it again with `ai-wam collect`."
        )


def read_json(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ShardError: unreadable, or no file: a pipe or a device may never end.
    """
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise ShardError(f"{path} is no file; copy the folder again")
    try:
        return json_yaml.read_json(path)
    except InvalidValue as error:
        raise ShardError(str(error)) from error
