"""Writes a whole `EpisodeSource` into shards, for `ai-wam collect`, `convert` and `label`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tqdm import tqdm

from ai_wam.episodes import EpisodeSource, SourceCard
from ai_wam.errors import CannotContinue, FileTrouble, InvalidValue, UserError
from ai_wam.files.atomic import AnyPath, as_path
from ai_wam.files.read_errors import DATA_FAULTS, fault, of_machine
from ai_wam.utils.counted import counted
from ai_wam.utils.number_checks import check_numbers
from ai_wam.video import VideoEncoding
from datamodules.shards.data_card import merged, write_card
from datamodules.shards.episode_encoding import EpisodeMembers, encode_episode
from datamodules.shards.format import LeftOut
from datamodules.shards.parallel_writing import Workers, write_missing
from datamodules.shards.source_settings import describe
from datamodules.shards.writer import close_folder, data_set_settings, open_folder

OnBadEpisode = Literal["raise", "skip"]
_LISTED = 20  # of what was left out, on the terminal


@dataclass(frozen=True)
class SourceShards:
    """The encoded episodes of a source, by shard number; episodes left out do not move others.

    Attributes:
        source: of the episodes.
        per_shard: source episodes per shard, those left out included.
        encoding: how videos are compressed.
        on_error: "skip" leaves out what cannot be read or is malformed, with the reason.
    """

    source: EpisodeSource
    per_shard: int
    encoding: VideoEncoding
    on_error: OnBadEpisode = "raise"

    def __call__(self, number: int) -> Iterator[EpisodeMembers | LeftOut]:
        """The episodes of a shard."""
        for index in range(number * self.per_shard, min((number + 1) * self.per_shard, len(self.source))):
            yield self._episode(index)

    def _episode(self, index: int) -> EpisodeMembers | LeftOut:
        key: str | None = None
        try:
            episode = self.source[index]
            key = episode.key
            return encode_episode(episode, self.encoding)
        except DATA_FAULTS as error:
            if of_machine(error):
                raise
            if self.on_error == "skip":
                return LeftOut(index, key, fault(error))
            if isinstance(error, UserError):
                raise
            kind = FileTrouble if isinstance(error, OSError) else InvalidValue
            raise kind(f"{self._named(index, key)} cannot be read: {fault(error)}") from error
        except SystemExit as error:
            if type(error) is not SystemExit:  # an interruption
                raise
            place = self._named(index, key)
            raise CannotContinue(f"{place} ended the program (sys.exit({error.code!r}))") from error

    def _named(self, index: int, key: str | None) -> str:
        return f"episode {index}{f' ({key})' if key else ''} of {type(self.source).__name__}"


def write_shards(
    source: EpisodeSource,
    folder: str | AnyPath,
    episodes_per_shard: int = 64,
    workers: int | Workers = 2,
    encoding: VideoEncoding | None = None,
    progress: bool = True,
    card: SourceCard | None = None,
    on_error: OnBadEpisode = "raise",
) -> dict[str, Any]:
    """Write all episodes of a source.

    Started again after an interruption, it resumes at the first missing shard.

    Args:
        source: the episodes; sent to the workers by pickling.
        folder: where the shards go, a path or an address such as s3://bucket/folder; made if missing.
        episodes_per_shard: episodes in all shards but the last.
        workers: number of processes, or where else shards are made.
        encoding: how to compress the videos; 4:4:4 with every frame a key frame if left out.
        progress: show a progress bar.
        card: for the shards' README.md; what it leaves out is taken from the source's own `card`.
        on_error: "raise" stops at an episode that cannot be read or is malformed; "skip" leaves it out, and
            the index lists it.

    Returns:
        The set's index.

    Raises:
        ShardError: the folder holds another data set.
        ValueError: a malformed episode, or no episodes at all.
    """
    check_numbers("write_shards", at_least=1, episodes_per_shard=episodes_per_shard)
    if len(source) < 1:
        name = f"{type(source).__name__} {getattr(source, 'path', '')}".strip()
        raise InvalidValue(f"{name} has no episodes; correct the path or the settings")
    workers = Workers(workers) if isinstance(workers, int) else workers
    folder, encoding = as_path(folder), encoding or VideoEncoding()
    described = {"episodes": len(source), "settings": describe(source)}
    settings = data_set_settings(described, episodes_per_shard, encoding)
    shards = -(-len(source) // episodes_per_shard)
    missing = open_folder(folder, settings, shards)
    last = len(source) - (shards - 1) * episodes_per_shard
    todo = sum(last if number == shards - 1 else episodes_per_shard for number in missing)
    with tqdm(total=len(source), initial=len(source) - todo, unit="episode", disable=not progress) as bar:
        write_missing(
            SourceShards(source, episodes_per_shard, encoding, on_error), folder, missing, workers, bar
        )
    index = close_folder(folder, shards, settings)
    write_card(folder, merged(card, getattr(source, "card", None)))
    return index


def left_out_lines(index: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal on which episodes of the source were left out, and why; empty if none was."""
    missing = [LeftOut(**each) for each in index.get("left_out", [])]
    if not missing:
        return []
    more = [f"  ... and {len(missing) - _LISTED} more, see index.json"] * (len(missing) > _LISTED)
    return [
        f"left out {counted(len(missing), 'episode')}:",
        *(f"  {each}" for each in missing[:_LISTED]),
        *more,
    ]
