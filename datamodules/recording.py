"""Records a whole `EpisodeSource` into shards with several processes: what `ai-wam collect` does."""

import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ai_wam.types import Episode, EpisodeSource, SourceCard
from ai_wam.video import VideoEncoding
from datamodules.data_card import merged
from datamodules.settings import describe
from datamodules.shard_format import shard_name
from datamodules.shard_writer import close_folder, open_folder, recording_settings, write_shard

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _Job:
    """What every worker knows.

    Attributes:
        source: gives the episodes.
        folder: where shards go.
        per_shard: episodes per shard.
        encoding: how videos are compressed.
        written: counter of episodes, shared by all workers.
        stop: set when the recording is to end early.
    """

    source: EpisodeSource
    folder: Path
    per_shard: int
    encoding: VideoEncoding
    written: Any
    stop: Any

    def episodes(self, number: int) -> Iterator[Episode]:
        """The episodes of a shard, until somebody asks to stop."""
        for index in range(number * self.per_shard, min((number + 1) * self.per_shard, len(self.source))):
            if self.stop.is_set():
                raise InterruptedError(
                    f"{shard_name(number)} was not finished: the recording was asked to stop"
                )
            yield self.source[index]
            with self.written.get_lock():
                self.written.value += 1

    def write(self, number: int) -> None:
        """Write shard `number`."""
        write_shard(self.folder, number, self.episodes(number), self.encoding)


_job: _Job | None = None  # a worker process's own; shared counters can be inherited but not sent


def write_shards(
    source: EpisodeSource,
    folder: str | Path,
    episodes_per_shard: int = 64,
    workers: int = 2,
    encoding: VideoEncoding | None = None,
    progress: bool = True,
    card: SourceCard | None = None,
) -> dict[str, Any]:
    """Write all episodes of a source.

    Started again after an interruption, it goes on at the first missing shard.

    Args:
        source: the episodes; sent to the workers by pickling.
        folder: where the shards go; made if missing.
        episodes_per_shard: episodes in all shards but the last.
        workers: processes, each writing one shard at a time; 0 writes in this one.
        encoding: how to compress the videos; 4:4:4 with every frame a key frame if left out.
        progress: show a progress bar.
        card: for the README.md beside the shards; what it leaves out, the source's own `card` says.

    Returns:
        The set's index.

    Raises:
        ShardError: the folder holds another recording.
        ValueError: a malformed episode, or no episodes at all.
    """
    if len(source) < 1 or episodes_per_shard < 1 or workers < 0:
        raise ValueError(
            f"write_shards: {len(source)} episodes in shards of {episodes_per_shard} with {workers} workers: "
            "the first two must be at least 1, the last at least 0"
        )
    folder, encoding = Path(folder), encoding or VideoEncoding()
    described = {"episodes": len(source), "settings": describe(source)}
    settings = recording_settings(described, episodes_per_shard, encoding)
    shards = -(-len(source) // episodes_per_shard)
    missing = open_folder(folder, settings, shards)
    context = get_context("spawn")  # a fork would copy locks and renderers in an unknown state
    job = _Job(source, folder, episodes_per_shard, encoding, context.Value("q", 0), context.Event())
    last = len(source) - (shards - 1) * episodes_per_shard
    todo = sum(last if number == shards - 1 else episodes_per_shard for number in missing)
    with tqdm(total=len(source), initial=len(source) - todo, unit="episode", disable=not progress) as bar:
        if workers:
            _write_parallel(job, missing, min(workers, len(missing)), bar)
        else:
            for number in missing:
                write_shard(folder, number, _counted(job.episodes(number), bar), encoding)
    return close_folder(folder, shards, settings, merged(card, getattr(source, "card", None)))


def _write_parallel(job: _Job, missing: list[int], workers: int, bar: Any) -> None:
    if not missing:
        return
    begun = bar.n
    _check_pickles(job.source)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(job,)) as pool:
        with _one_thread():
            pending: set[Future[None]] = {pool.submit(_write_in_worker, number) for number in missing}
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                _advance(bar, job, begun)
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker process died while writing into {job.folder}. Finished shards are kept: run it "
                "again to go on; with workers=0 the cause shows in this process."
            ) from error
        except BaseException:
            job.stop.set()  # the workers remove what is half written, then the pool closes
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _counted(episodes: Iterator[Episode], bar: Any) -> Iterator[Episode]:
    for episode in episodes:
        yield episode
        bar.update()


def _advance(bar: Any, job: _Job, begun: int) -> None:
    if new := begun + job.written.value - bar.n:
        bar.update(new)


def _check_pickles(source: EpisodeSource) -> None:
    try:
        pickle.dumps(source)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{type(source).__name__} cannot be sent to worker processes: {error}. Open files and simulators "
            "on first use instead of in __init__, or pass workers=0."
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Children started meanwhile use one thread each: the processes are the parallelism."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _begin_worker(job: _Job) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and asks for a clean stop
    torch.set_num_threads(1)
    _job = job


def _write_in_worker(number: int) -> None:
    if _job is None:
        raise RuntimeError("a recording worker was started without its job")
    _job.write(number)
