"""Records a whole `EpisodeSource` into shards: what `ai-wam collect`, `convert` and `label` do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ai_wam.files import AnyPath, as_path
from ai_wam.types import EpisodeSource, SourceCard
from ai_wam.video import VideoEncoding
from datamodules.data_card import merged, write_card
from datamodules.episode_members import EpisodeMembers, encode_episode
from datamodules.settings import describe
from datamodules.shard_jobs import Workers, write_missing
from datamodules.shard_writer import close_folder, open_folder, recording_settings


@dataclass(frozen=True)
class Recording:
    """The shards of a source, by number.

    Attributes:
        source: gives the episodes.
        per_shard: episodes per shard.
        encoding: how videos are compressed.
    """

    source: EpisodeSource
    per_shard: int
    encoding: VideoEncoding

    def __call__(self, number: int) -> Iterator[EpisodeMembers]:
        """The episodes of a shard."""
        for index in range(number * self.per_shard, min((number + 1) * self.per_shard, len(self.source))):
            yield encode_episode(self.source[index], self.encoding)


def write_shards(
    source: EpisodeSource,
    folder: str | AnyPath,
    episodes_per_shard: int = 64,
    workers: int | Workers = 2,
    encoding: VideoEncoding | None = None,
    progress: bool = True,
    card: SourceCard | None = None,
) -> dict[str, Any]:
    """Write all episodes of a source.

    Started again after an interruption, it goes on at the first missing shard.

    Args:
        source: the episodes; sent to the workers by pickling.
        folder: where the shards go, a path or an address such as s3://bucket/folder; made if missing.
        episodes_per_shard: episodes in all shards but the last.
        workers: processes, or who else makes shards.
        encoding: how to compress the videos; 4:4:4 with every frame a key frame if left out.
        progress: show a progress bar.
        card: for the README.md beside the shards; what it leaves out, the source's own `card` says.

    Returns:
        The set's index.

    Raises:
        ShardError: the folder holds another recording.
        ValueError: a malformed episode, or no episodes at all.
    """
    if len(source) < 1 or episodes_per_shard < 1:
        raise ValueError(
            f"write_shards: {len(source)} episodes in shards of {episodes_per_shard}: both must be at least 1"
        )
    workers = Workers(workers) if isinstance(workers, int) else workers
    folder, encoding = as_path(folder), encoding or VideoEncoding()
    described = {"episodes": len(source), "settings": describe(source)}
    settings = recording_settings(described, episodes_per_shard, encoding)
    shards = -(-len(source) // episodes_per_shard)
    missing = open_folder(folder, settings, shards)
    last = len(source) - (shards - 1) * episodes_per_shard
    todo = sum(last if number == shards - 1 else episodes_per_shard for number in missing)
    with tqdm(total=len(source), initial=len(source) - todo, unit="episode", disable=not progress) as bar:
        write_missing(Recording(source, episodes_per_shard, encoding), folder, missing, workers, bar)
    index = close_folder(folder, shards, settings)
    write_card(folder, merged(card, getattr(source, "card", None)))
    return index
