"""The entries of an index as columns, for hundreds of thousands of episodes.

An entry object would take 2 kB per episode, in every forked worker again, since counting references writes
to its memory. Columns take a tenth of that and are shared; entries are made on access.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Int64

from datamodules.shards.format import EpisodeEntry, Member

_Kind = tuple[str, tuple[tuple[str, tuple[int, int]], ...], tuple[str, ...]]  # shard, views, names of members


class EpisodeTable(Sequence[EpisodeEntry]):
    """A list of entries that grows at its end."""

    def __init__(self, entries: Iterable[EpisodeEntry] = ()) -> None:
        self._keys, self._key_ends = bytearray(), array("q")
        self._frames, self._hz, self._kind = array("q"), array("d"), array("q")
        self._members, self._member_ends = array("q"), array("q")  # offset, size and CRC of one after another
        self._kinds: list[_Kind] = []
        self._numbers: dict[_Kind, int] = {}
        self += entries

    def __len__(self) -> int:
        return len(self._frames)

    def __iadd__(self, entries: Iterable[EpisodeEntry]) -> "EpisodeTable":
        for entry in entries:
            kind = (entry.file, tuple(entry.views.items()), tuple(entry.members))
            if kind not in self._numbers:
                self._numbers[kind] = len(self._kinds)
                self._kinds.append(kind)
            self._kind.append(self._numbers[kind])
            self._keys += entry.key.encode()
            self._key_ends.append(len(self._keys))
            self._frames.append(entry.frames)
            self._hz.append(entry.hz)
            for member in entry.members.values():
                self._members.extend(member)
            self._member_ends.append(len(self._members))
        return self

    @overload
    def __getitem__(self, index: int) -> EpisodeEntry: ...
    @overload
    def __getitem__(self, index: slice) -> "list[EpisodeEntry]": ...
    def __getitem__(self, index: int | slice) -> "EpisodeEntry | list[EpisodeEntry]":
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # an IndexError where there is none
        file, views, names = self._kinds[self._kind[number]]
        key = self._keys[_part(self._key_ends, number)].decode()
        where = iter(self._members[_part(self._member_ends, number)])
        members = dict(zip(names, map(Member, where, where, where), strict=True))
        return EpisodeEntry(key, file, self._frames[number], self._hz[number], dict(views), members)

    def __iter__(self) -> Iterator[EpisodeEntry]:
        return (self[number] for number in range(len(self)))

    @property
    def frames(self) -> Int64[np.ndarray, "n"]:
        """Number of frames of each."""
        return np.array(self._frames, dtype=np.int64)

    def alike(self) -> list[tuple[EpisodeEntry, Int64[np.ndarray, "_"]]]:
        """An entry of each rate and set of views, and the numbers of all that share them."""
        views: dict[object, int] = {}
        of_kind = [views.setdefault(kind[1], len(views)) for kind in self._kinds]
        sorts = np.array(of_kind, dtype=np.float64)[np.array(self._kind, dtype=np.int64)]
        rows = np.column_stack([np.array(self._hz, dtype=np.float64), sorts])
        _, first, sort = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        sort = sort.reshape(-1)
        return [(self[int(place)], np.flatnonzero(sort == number)) for number, place in enumerate(first)]


def _part(ends: "array[int]", number: int) -> slice:
    return slice(ends[number - 1] if number else 0, ends[number])
