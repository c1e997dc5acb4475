"""A data loader that counts the batches it has handed out, and can resume there."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from datamodules.sampling import EpochSampler


class Position(NamedTuple):
    """A place in the stream of training batches, the same on all ranks.

    Attributes:
        epoch: the epoch.
        step: batches of it that were handed out.
    """

    epoch: int
    step: int

    @classmethod
    def of(cls, sampler: EpochSampler) -> "Position":
        """Where a sampler's loader is."""
        return cls(sampler.epoch, sampler.step)


def leave_signals_to_parent(_: int) -> None:
    """In a worker of a loader: ignore signals except a SIGTERM from the training process.

    Ctrl-C and a cluster's SIGTERM reach the workers too; if they ended then, the training process could not
    finish its step and save it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process at a SIGTERM that the parent sends."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class StreamLoader(DataLoader[Any]):
    """Batches of an `EpochSampler`; Lightning keeps its `state_dict` in checkpoints.

    Workers prefetch, so the sampler is ahead of the batches handed out, which are counted here. An iteration
    starts its workers with its first batch, after Lightning has set the epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator instead of torch's class
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):  # Lightning put its own in place, for overfit_batches
            yield from super().__iter__()
            return
        sampler.begin()
        for batch in super().__iter__():
            sampler.step += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position after the last batch that was handed out."""
        sampler = self.sampler
        return Position.of(sampler)._asdict() if isinstance(sampler, EpochSampler) else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume at a saved position."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.resume(**state_dict)
