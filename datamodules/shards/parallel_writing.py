"""Writes shards in several processes or on a Ray cluster; the bytes do not depend on that."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch

from ai_wam.errors import CannotContinue, InvalidType, InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.utils.number_checks import check_numbers
from ai_wam.utils.ray_cluster import ray_cluster
from datamodules.shards.format import shard_name
from datamodules.shards.worker_errors import Failure
from datamodules.shards.writer import Made, remove_unfinished, write_shard

Make = Callable[[int], Iterator[Made]]  # the episodes of a shard, by the shard's number
_POLL_SECONDS = 0.2
_RETRIES = 3  # of a shard whose Ray worker died


@dataclass(frozen=True)
class Workers:
    """Where shards are made: in this process, in other processes, or on a Ray cluster.

    Attributes:
        processes: of this machine, each making one shard at a time; 0 makes them in this process.
        ray: workers of a Ray cluster instead (extra `ray`): the one that RAY_ADDRESS names, or so many on
            this machine. They read and write by the same paths as this process, so on several machines those
            are a shared folder or a store. A worker that dies is replaced, and its shard made anew.
        gpus: of every Ray worker.

    Raises:
        ValueError: fewer than none.
    """

    processes: int = 2
    ray: int = 0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if min(self.processes, self.ray, self.gpus) < 0:
            raise InvalidValue(f"{self}: processes, ray and gpus must be at least 0")
        check_numbers("Workers", gpus=self.gpus)


def write_missing(make: Make, folder: AnyPath, missing: list[int], workers: Workers, bar: Any) -> None:
    """Make shards and count their episodes on tqdm's bar.

    Raises:
        TypeError: `make` cannot be sent to workers.
        RuntimeError: a worker died; what is finished is kept.
    """
    if workers.ray:
        _write_on_ray(make, folder, missing, workers, bar)
    elif workers.processes and missing:
        _write_parallel(make, folder, missing, min(workers.processes, len(missing)), bar)
    else:
        for number in missing:
            write_shard(folder, number, _counted(make(number), bar))


@dataclass(frozen=True)
class _Job:
    """The arguments of a worker process.

    Attributes:
        make: gives the episodes.
        folder: where shards go.
        written: counter of episodes, shared by all workers.
        stop: set when the work is to end early.
    """

    make: Make
    folder: AnyPath
    written: Any
    stop: Any

    def episodes(self, number: int) -> Iterator[Made]:
        """The episodes of a shard, until `stop` is set."""
        for members in self.make(number):
            if self.stop.is_set():
                raise InterruptedError(f"{shard_name(number)} was not finished: writing was stopped")
            yield members
            with self.written.get_lock():
                self.written.value += 1


_job: _Job | None = None  # a worker process's own; shared counters can be inherited but not sent


def _write_parallel(make: Make, folder: AnyPath, missing: list[int], workers: int, bar: Any) -> None:
    begun, context = bar.n, get_context("spawn")  # a fork would copy locks and renderers in an unknown state
    _check_pickles(make)
    job = _Job(make, folder, context.Value("q", 0), context.Event())
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(job,)) as pool:
        with _one_thread(), _without_interrupts():
            pending: set[Future[Failure | None]] = {
                pool.submit(_write_in_worker, number) for number in missing
            }
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                bar.update(begun + job.written.value - bar.n)
                for future in done:
                    _check(future.result())
        except BrokenProcessPool as error:
            raise CannotContinue(
                f"a worker process died while writing into {folder}. Finished shards are kept: run it "
                "again to resume; with 0 worker processes the cause shows in this process."
            ) from error
        except BaseException:
            job.stop.set()  # the workers remove what is half written, then the pool closes
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_on_ray(make: Make, folder: AnyPath, missing: list[int], workers: Workers, bar: Any) -> None:
    with ray_cluster(workers.ray) as ray:
        task = ray.remote(num_cpus=1, num_gpus=workers.gpus, max_retries=_RETRIES)(_write_on_worker)
        shared = ray.put(make)
        pending = [task.remote(shared, folder, number, os.getcwd()) for number in missing]
        while pending:
            done, pending = ray.wait(pending)
            bar.update(sum(map(_check, ray.get(done))))
    remove_unfinished(folder)  # of workers that died


def _write_on_worker(make: Make, folder: AnyPath, number: int, where: str) -> int | Failure:
    """Write one shard; returns the number of its episodes."""
    os.chdir(where)  # relative paths are those of the calling process
    torch.set_num_threads(1)
    try:
        return len(write_shard(folder, number, make(number)).episodes)
    except Exception as error:
        return Failure.of(error)


def _check(outcome: int | Failure | None) -> int:
    """The number of episodes that a worker wrote; raises its error."""
    if isinstance(outcome, Failure):
        raise outcome.error()
    return outcome or 0


def _counted(episodes: Iterator[Made], bar: Any) -> Iterator[Made]:
    for members in episodes:
        yield members
        bar.update()


def _check_pickles(make: Make) -> None:
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        kind = type(getattr(make, "source", make)).__name__
        raise InvalidType(
            f"{kind} cannot be sent to worker processes: {error}. Open "
            "files and simulators on first use instead of in __init__, or pass workers=0."
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which started child processes use one thread each, since there are several processes."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Context in which started child processes ignore Ctrl-C: this process gets it and stops them cleanly."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(job: _Job) -> None:
    global _job
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()
    _job = job


def _end_with_parent() -> None:
    """End this worker when its parent ends: a parent that was killed cannot stop its workers."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_worker(number: int) -> Failure | None:
    if _job is None:
        raise RuntimeError("a worker was started without its job")
    try:
        write_shard(_job.folder, number, _job.episodes(number))
    except Exception as error:
        return Failure.of(error)
    return None
