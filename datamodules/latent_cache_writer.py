"""Writes caches of latents: every window of every episode through a model's frozen encoders, once."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.types import Batch, ClipEncoder
from datamodules.clip_dataset import ClipDataset, Collate
from datamodules.shards.episode_encoding import EpisodeMembers, npy
from datamodules.shards.format import EpisodeEntry, shard_name
from datamodules.shards.latent_cache import CACHES, Precision
from datamodules.shards.parallel_writing import Workers, write_missing
from datamodules.shards.writer import close_folder, open_folder

_STILL_ONLY = ("cameras", "first_action", "action")  # parts that are cached for cameras that stand still


@dataclass(frozen=True)
class Caching:
    """The encoded episodes of a cache, by shard number: shard n has the episodes of the source's shard n.

    Attributes:
        dataset: of one folder, whose windows are encoded.
        encoder: the model.
        device: where its encoders are.
        batch_size: windows encoded at a time.
        decoders: processes that decode pictures meanwhile; 0 decodes in between.
        precision: of the stored latents.
        actions: whether action images are encoded too.
    """

    dataset: ClipDataset
    encoder: ClipEncoder
    device: str
    batch_size: int
    decoders: int
    precision: Precision
    actions: bool

    def __call__(self, number: int) -> Iterator[EpisodeMembers]:
        """The encoded episodes of a shard."""
        source = self.dataset.sets[0]
        for index, entry in enumerate(source.episodes):
            if entry.file == shard_name(number):
                yield self._encode(index, entry)

    def _encode(self, index: int, entry: EpisodeEntry) -> EpisodeMembers:
        end = int(self.dataset.ends[index])
        begin = int(self.dataset.ends[index - 1]) if index else 0
        still = not self.moving(index, entry)
        arrays: dict[str, np.ndarray] = {}
        for batch, first in self._batches(begin, end):
            encoded = self.encoder.encode_batch(batch.to(self.device), self.actions)
            for part, values in encoded.parts.items():
                if part in _STILL_ONLY and not still:
                    continue
                with np.errstate(over="ignore"):  # found the line after next
                    kept = values.cpu().numpy().astype(self.precision)
                if not np.isfinite(kept).all():
                    raise InvalidValue(
                        f"episode {entry.key!r}: latents {part!r} do not fit into {self.precision}; "
                        "use --precision float32"
                    )
                for view, name in enumerate(self.dataset.clip.views):
                    if name in entry.views:
                        shape = (end - begin, *kept.shape[2:])
                        array = arrays.setdefault(f"{name}.{part}.npy", np.empty(shape, kept.dtype))
                        array[first : first + len(kept)] = kept[:, view]
        files = {name: npy(array) for name, array in sorted(arrays.items())}
        return EpisodeMembers(entry.key, entry.frames, entry.hz, entry.views, files)

    def _batches(self, begin: int, end: int) -> Iterator[tuple[Batch, int]]:
        windows = Subset(self.dataset, range(begin, end))
        collate = Collate(self.dataset.clip.frames)
        loader = DataLoader(windows, self.batch_size, num_workers=self.decoders, collate_fn=collate)
        first = 0
        for batch in loader:
            yield batch, first
            first += len(batch.keys)

    def moving(self, index: int, entry: EpisodeEntry) -> list[str]:
        """Names of the views whose camera moves: their future poses are known to some plans only."""
        poses = self.dataset.sets[0].header(index).world_from_camera
        return [name for name in self.dataset.clip.views if name in entry.views and len(poses[name]) > 1]


def write_cache(
    caching: Caching, settings: Mapping[str, Any], workers: Workers, progress: bool = True
) -> AnyPath:
    """Write the cache of a folder of shards; resumes at the first missing shard.

    Args:
        caching: what is encoded, and how.
        settings: of `cache_settings`.
        workers: where shards are made.
        progress: show a progress bar.

    Returns:
        The cache's folder.

    Raises:
        ValueError: action images of a camera that moves were asked for.
    """
    source = caching.dataset.sets[0]
    if caching.actions:
        for index, entry in enumerate(source.episodes):
            if moving := caching.moving(index, entry):
                raise InvalidValue(
                    f"{source.folder}: episode {entry.key!r}: camera {moving[0]!r} moves. Plans that act "
                    "hold it where it is now and others do not, so its action images have two versions: "
                    "leave them out of the cache (--actions false), or that view out of clip.views"
                )
    settings = {**settings, "precision": caching.precision, "actions": caching.actions}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = source.folder / CACHES / key
    files = [entry.file for entry in source.episodes]
    missing = open_folder(folder, settings, source.shards)
    total = sum(files.count(shard_name(number)) for number in missing)
    with tqdm(total=total, unit="episode", disable=not progress) as bar:
        write_missing(caching, folder, missing, workers, bar)
    close_folder(folder, source.shards, settings)
    return folder
