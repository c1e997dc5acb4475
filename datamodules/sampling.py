"""The order of samples: pure functions of (seed, epoch, rank, step), from counter-based generators.

A sample's number counts windows over passes: number = pass * windows + window. Whatever is random about a
sample depends on its number and the seed alone, so order, ranks and workers cannot change it.
"""

from collections.abc import Iterator, Sequence, Sized
from enum import IntEnum
from typing import Any, cast

import numpy as np
from jaxtyping import Float64, Int64, Integer
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from ai_wam.errors import InvalidValue

_GOLDEN = (1 + 5**0.5) / 2


class Stream(IntEnum):
    """Purposes of random generators; different streams are independent."""

    PASS = 0
    EPOCH = 1
    SAMPLE = 2
    EPISODE = 3


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A generator that depends on its arguments alone; at most two counters, each below 2**64."""
    first, second = (*counters, 0, 0)[:2]
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, first, second, int(stream)]))


class EpochPlan:
    """The samples of every epoch, over all ranks.

    Each folder's windows are drawn without replacement: its n-th pass is a permutation, and epochs take the
    next part of these passes one after the other.
    """

    def __init__(
        self, windows: Sequence[int], weights: Sequence[float] | None, epoch_size: int | None, seed: int
    ) -> None:
        """Divide an epoch among the folders.

        Args:
            windows: number of windows in each folder.
            weights: the folders' shares; in proportion to their windows if left out.
            epoch_size: samples per epoch over all ranks; as many as there are windows if left out.
            seed: of the order.

        Raises:
            ValueError: no windows, weights that are not positive, or an epoch too small for a folder's share.
        """
        self.windows, self.seed = np.asarray(windows, dtype=np.int64), seed
        total = int(self.windows.sum())
        shares = np.asarray(weights if weights is not None else windows, dtype=np.float64)
        if total < 1 or (shares <= 0).any() or not np.isfinite(shares).all():
            raise InvalidValue(
                f"folders with {list(windows)} windows and weights {weights}: all must be above 0"
            )
        self.size = total if epoch_size is None else epoch_size
        self.counts = _apportion(shares / shares.sum(), self.size)
        if (self.counts < 1).any():
            raise InvalidValue(
                f"epoch_size {self.size} gives folders of weights {shares.tolist()} {self.counts.tolist()} "
                "samples; each needs at least 1: raise epoch_size or drop the folder"
            )

    def epoch(self, epoch: int) -> Integer[np.ndarray, "n"]:
        """Sample numbers of an epoch in their order, four bytes each where they fit."""
        total, first = int(self.windows.sum()), np.concatenate([[0], np.cumsum(self.windows)[:-1]])
        passes = -(-(epoch + 1) * self.counts // self.windows)
        small = int(passes.max()) * total <= np.iinfo(np.uint32).max
        numbers, filled = np.empty(int(self.counts.sum()), dtype=np.uint32 if small else np.int64), 0
        for folder, (count, windows) in enumerate(
            zip(self.counts.tolist(), self.windows.tolist(), strict=True)
        ):
            begin, end = epoch * count, (epoch + 1) * count  # of the folder's passes, one after the other
            for turn in range(begin // windows, -(-end // windows)):
                low, high = max(0, begin - turn * windows), min(windows, end - turn * windows)
                here = numbers[filled : filled + high - low]
                self._fill_part_of_pass(here, windows, low, turn, folder)
                np.add(here, turn * total + int(first[folder]), out=here)
                filled += len(here)
        generator(self.seed, Stream.EPOCH, epoch).shuffle(numbers)
        return numbers

    def _fill_part_of_pass(
        self, here: Integer[np.ndarray, "n"], windows: int, low: int, turn: int, folder: int
    ) -> None:
        """Fill `here` with a part of a pass from place `low` on; a whole pass is shuffled in place."""
        order = here if len(here) == windows else np.empty(windows, dtype=here.dtype)
        order[:] = np.arange(windows, dtype=here.dtype)
        generator(self.seed, Stream.PASS, turn, folder).shuffle(order)
        if order is not here:
            here[:] = order[low : low + len(here)]


class EpochSampler(DistributedSampler[Any]):
    """A rank's sample numbers, epoch by epoch, from any step on.

    Step s of rank r takes the r-th slice of the s-th global batch, so the same samples make up a step
    whatever the number of ranks. What does not fill a global batch is left out. Lightning leaves samplers of
    this base class alone and calls `set_epoch`; without such a call every iteration is the next epoch.

    Attributes:
        epoch: of the current iteration, or of the coming one.
        step: batches of that epoch which the loader has handed out (`datamodules.resumable_loader` counts
            them, because samplers run ahead of it).
    """

    def __init__(self, dataset: Sized, plan: EpochPlan, batch_size: int, ranks: int, rank: int) -> None:
        """Take a rank's part of a plan.

        Raises:
            ValueError: an epoch smaller than one global batch.
        """
        super().__init__(cast("Dataset[Any]", dataset), ranks, rank, shuffle=False, drop_last=True)
        self.plan, self.batch_size, self.step = plan, batch_size, 0
        self._resumed = False
        self.steps = plan.size // (batch_size * ranks)
        if self.steps < 1:
            raise InvalidValue(
                f"an epoch of {plan.size} samples does not fill one batch of {batch_size} on {ranks} "
                "rank(s); lower batch_size, raise epoch_size or record more episodes"
            )

    def resume(self, epoch: int, step: int) -> None:
        """Let the next iteration resume after `step` batches of an epoch."""
        self.epoch, self.step, self._resumed = epoch, step, True

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which starts at its beginning or where `resume` has set it."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def begin(self) -> None:
        """Begin an iteration: of the next epoch, if this one has begun and was not resumed."""
        if self.step >= self.steps or (self.step and not self._resumed):
            self.epoch, self.step = self.epoch + 1, 0
        self._resumed = False

    def numbers(self, epoch: int) -> Integer[np.ndarray, "steps ranks rows"]:
        """Sample numbers of a whole epoch on all ranks."""
        whole = self.plan.epoch(epoch)[: self.steps * self.num_replicas * self.batch_size]
        return whole.reshape(self.steps, self.num_replicas, self.batch_size)

    def __iter__(self) -> Iterator[int]:
        return self._walk(self.epoch, self.step)

    def _walk(self, epoch: int, step: int) -> Iterator[int]:
        """Numbers from a step on; a generator, so that it starts after workers are forked and stays small."""
        for rows in self.numbers(epoch)[step:, self.rank]:
            yield from rows.tolist()

    def __len__(self) -> int:
        return self.steps * self.batch_size


def spread(folders: Sequence[Int64[np.ndarray, "_"]]) -> Int64[np.ndarray, "n"]:
    """All windows, ordered so that any beginning of the order is spread over folders, episodes and times.

    Folders take turns. Within one, episodes come by the fractional part of their number times the golden
    ratio, which spreads any beginning evenly both over neighbours, as the episodes of a task are, and over
    every n-th episode. An episode's windows come in such an order, too, begun elsewhere in each, and its
    second one comes after the first ones of all episodes.

    Args:
        folders: of each folder, the number of windows of every episode.
    """
    folder = np.repeat(np.arange(len(folders)), [int(counts.sum()) for counts in folders])
    turn, place = [], []
    for counts in folders:
        episodes = np.arange(len(counts))
        of = np.repeat(episodes, counts)
        here = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        turns = np.where(counts > 0, _GOLDEN * episodes % 1, np.inf)  # episodes without windows take none
        turn.append(_ranks(turns)[of])
        within = np.lexsort((_GOLDEN * (here + of) % 1, of))
        place.append(here[np.argsort(within, kind="stable")])
    return np.lexsort((folder, np.concatenate(turn), np.concatenate(place)))


def _ranks(values: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


class FixedSampler(DistributedSampler[Any]):
    """The same samples in every epoch, each on one rank, in a given order or one after the other.

    No sample comes twice and all ranks have equally many (unequal numbers can make ranks wait for each other
    forever), so up to ranks - 1 of the last samples are left out.
    """

    def __init__(
        self, dataset: Sized, ranks: int, rank: int, order: Int64[np.ndarray, "n"] | None = None
    ) -> None:
        super().__init__(cast("Dataset[Any]", dataset), ranks, rank, shuffle=False, drop_last=True)
        self._order = np.arange(len(dataset)) if order is None else order
        self._count = len(dataset) // ranks
        if self._count < 1:
            raise InvalidValue(
                f"{len(dataset)} validation windows are too few for {ranks} ranks; record more episodes"
            )

    def __iter__(self) -> Iterator[int]:
        return iter(self._order[self.rank : self._count * self.num_replicas : self.num_replicas].tolist())

    def __len__(self) -> int:
        return self._count


def _apportion(shares: np.ndarray, size: int) -> Int64[np.ndarray, "n"]:
    """Whole numbers that add up to `size`, by largest remainder."""
    exact = shares * size
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: size - int(counts.sum())]] += 1
    return counts
