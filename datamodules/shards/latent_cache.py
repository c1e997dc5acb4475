"""Caches of windows' latents by frozen encoders, in the folder of the shards.

`ai-wam cache` writes them::

    <shards>/caches/<key>/    the same tars and indices as the shards, members `<key>.<view>.<part>.npy` with
                              one row per window; parts are the fields of `ai_wam.types.Encoded`
    <shards>/caches/prompts/  embeddings of all captions, as the prompt encoder keeps them

A cache is used only where everything that decides its contents is the same: shards, encoders and their
weights, clip, and the spacing of windows.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.files.numpy_arrays import read_header
from ai_wam.types import Encoded
from datamodules.shards.clip_windows import Windows
from datamodules.shards.folder import Recent, ShardFolder
from datamodules.shards.format import INDEX, EpisodeEntry, ShardError, read_json
from datamodules.shards.reader import ShardSet
from datamodules.shards.source_settings import differences

FORMAT = 1  # of a cache's contents
CACHES, PROMPTS = "caches", "prompts"
Precision = Literal["float16", "float32"]
_TABLES_KEPT = 4096


def cache_settings(
    encoders: Mapping[str, Any], source: ShardSet, windows: Windows, video: bool
) -> dict[str, Any]:
    """Everything that decides what a cache holds, as JSON gives it back.

    Args:
        encoders: of `ClipEncoder.encoders`.
        source: the shards.
        windows: how windows are cut.
        video: whether whole clips are encoded, or first frames alone.
    """
    clip = windows.clip
    settings = {
        "format": FORMAT,
        "source": source.digest,
        "encoders": encoders,
        "frames": clip.frames,
        "seconds_per_frame": clip.seconds_per_frame,
        "size": clip.size,
        "views": clip.views,
        "every": windows.every,
        "pad": windows.pad,
        "least": windows.least,
        "video": video,
    }
    return dict(json.loads(json.dumps(settings)))


class _Table(NamedTuple):
    """Place, shape and type of an array's rows in its shard."""

    offset: int
    row: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class LatentCache(ShardFolder):
    """A finished cache."""

    command = "ai-wam cache"

    def _forget(self) -> None:
        super()._forget()
        self._tables: Recent[_Table] = Recent(_TABLES_KEPT)

    def window(
        self, index: int, names: Sequence[str | None], window: int, cameras: bool
    ) -> dict[str, Tensor]:
        """The latents of a window, by the names of `Encoded`: "v ..." each, zeros for missing views.

        Args:
            index: of the episode.
            names: views; None for missing ones.
            window: number of the window in its episode.
            cameras: whether the views are those the cache was made for, so that camera latents are valid.

        Raises:
            ShardError: the cache is damaged.
        """
        entry = self.episodes[index]
        present = {name: None for name in names if name is not None}
        first = next(iter(present))
        parts = [field.name for field in fields(Encoded) if f"{first}.{field.name}.npy" in entry.members]
        found = {}
        for part in parts:
            if part == "cameras" and not cameras:
                continue
            rows = {name: self._row(index, entry, f"{name}.{part}.npy", window) for name in present}
            empty = np.zeros_like(rows[first])
            stacked = np.stack([empty if name is None else rows[name] for name in names])
            found[part] = torch.from_numpy(stacked.astype(np.float32, copy=False))
        return found

    def _row(self, index: int, entry: EpisodeEntry, name: str, window: int) -> np.ndarray:
        table = self._tables.get((index, name), lambda: self._table(entry, name))
        if window >= table.shape[0]:
            raise self.damaged(entry, name, f"window {window} of {table.shape[0]}")
        data = self.bytes(entry, table.offset + window * table.row, table.row)
        if len(data) != table.row:
            raise self.damaged(entry, name, f"{len(data)} of {table.row} bytes of window {window}")
        return np.frombuffer(data, table.dtype).reshape(table.shape[1:])

    def _table(self, entry: EpisodeEntry, name: str) -> _Table:
        with self.naming(entry, name):
            member = entry.members[name]
            head = io.BytesIO(self.bytes(entry, member.offset, min(member.size, 256)))
            shape, fortran, dtype = read_header(head)
            row = math.prod(shape[1:]) * dtype.itemsize
            if fortran or not shape or head.tell() + shape[0] * row != member.size:
                raise InvalidValue(f"an array {shape} of {dtype} in {member.size} bytes")
            return _Table(member.offset + head.tell(), row, shape, dtype)


class Found(NamedTuple):
    """The result of looking for a cache in a folder of shards.

    Attributes:
        cache: one that fits; None if there is none.
        reasons: why the others do not fit.
    """

    cache: LatentCache | None
    reasons: list[str]


def find_cache(source: ShardSet, wanted: Mapping[str, Any], verify: bool = False) -> Found:
    """The finished cache of the shards with the wanted settings; of several the most precise one.

    A cache of whole clips also fits where only first frames are wanted.
    """
    fitting, reasons = [], []
    paths: list[AnyPath] = sorted((source.folder / CACHES).glob(f"*/{INDEX}"), key=str)
    for path in paths:
        index = read_json(path)
        settings = index.get("settings")
        if not isinstance(settings, dict) or not {"precision", "actions"} <= settings.keys():
            raise ShardError(f"{path} lacks the settings of a cache; delete {path.parent} and cache again")
        asked = dict(wanted) if wanted["video"] else {**wanted, "video": settings.get("video")}
        held = {"least": 1, **settings}  # it was no setting at first
        different = differences({name: held.get(name) for name in asked}, asked)
        if not index.get("complete"):
            reasons.append(f"{path.parent} is unfinished; run the same `ai-wam cache` again")
        elif different:
            reasons.append(f"{path.parent} holds something else: " + "; ".join(different[:3]))
        else:
            rank = (settings["precision"] == "float32", settings["actions"])
            fitting.append((rank, str(path.parent), path.parent))
    if not fitting:
        return Found(None, reasons)
    cache = LatentCache(max(fitting)[2], verify)
    episodes = ([(entry.key, entry.frames) for entry in folder.episodes] for folder in (cache, source))
    if next(episodes) != next(episodes):
        raise ShardError(
            f"{cache.folder} holds other episodes than the shards; delete it and run `ai-wam cache` again"
        )
    return Found(cache, reasons)
