"""`ai-wam collect` and `ai-wam convert`: the episodes of any source into a folder of shards."""

from ai_wam.episodes import EpisodeSource, SourceCard
from ai_wam.utils.counted import counted
from ai_wam.video import VideoEncoding
from datamodules.checks.wrong_units import Bounds, look_over
from datamodules.shards.convert_source import OnBadEpisode, left_out_lines, write_shards
from datamodules.shards.parallel_writing import Workers
from datamodules.shards.reader import ShardSet


def collect(
    source: EpisodeSource,
    out: str,
    episodes_per_shard: int = 64,
    workers: int = 2,
    ray: int = 0,
    lossless: bool = False,
    gop: int = 1,
    card: SourceCard | None = None,
    on_error: OnBadEpisode = "raise",
) -> None:
    """Write all episodes of a source into WebDataset shards.

    A demonstrating simulator and a reader of files are both a source, so recording and converting are one
    command. Interrupted, it resumes at the first missing shard when run again with the same settings.

    Args:
        source: where episodes come from: a YAML file with class_path and init_args, or the class and
            `--source.ARGUMENT value` for each argument; ready files are in configs/collect and
            configs/convert, for `--config`.
        out: folder of the shards, a path or an address such as s3://bucket/folder; made if missing.
        episodes_per_shard: episodes in all shards but the last.
        workers: processes, each writing one shard at a time; 0 writes in this one.
        ray: workers of a Ray cluster that write instead (extra `ray`); see
            `datamodules.shards.parallel_writing.Workers`.
        lossless: keep every pixel exactly, at about ten times the size.
        gop: frames from one key frame to the next; 1 reads fastest, 12 is two to four times smaller.
        card: title, licence, homepage, citation and known defects for the README.md beside the shards, where
            the source does not say them itself.
        on_error: "skip" leaves out episodes that cannot be read or are malformed, finishes the rest and lists
            them at the end, in index.json and in README.md.
    """
    encoding = VideoEncoding(lossless=lossless, gop=gop)
    makers = Workers(workers, ray)
    index = write_shards(source, out, episodes_per_shard, makers, encoding, card=card, on_error=on_error)
    total = (
        f"{out}: {counted(index['episodes'], 'episode')}, {counted(index['frames'], 'frame')}, "
        f"{index['bytes'] / 1e6:.1f} MB in {counted(len(index['shards']), 'shard')}"
    )
    warnings = look_over(ShardSet(out), Bounds())
    print("\n".join([total, *left_out_lines(index), *warnings]))
