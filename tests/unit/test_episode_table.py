"""Large indices: entries in columns, and a stream of samples that never lies in memory as objects."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.speed.data_scale import measure_scale, write_index
from datamodules.sampling import EpochPlan, EpochSampler, Stream, generator
from datamodules.shards.format import EpisodeEntry, Member
from datamodules.shards.index_table import EpisodeTable


def entry(number: int, views: int = 2, hz: float = 20.0) -> EpisodeEntry:
    sizes = {f"view{i}": (10 + i, 20) for i in range(views)}
    members = {
        f"{name}.mp4": Member(number * 2**33 + i, 7 * number, 2**32 - 1) for i, name in enumerate(sizes)
    }
    return EpisodeEntry(
        f"episode-{number}" * (1 + number % 3), f"shard-{number // 3:06d}.tar", 5 + number, hz, sizes, members
    )


ENTRIES = [entry(n, 1 + n % 2, 20.0 if n % 3 else 5.0) for n in range(11)]


def test_entries_come_back():
    table = EpisodeTable(ENTRIES[:4])
    table += ENTRIES[4:]
    assert list(table) == ENTRIES
    assert table[-1] == ENTRIES[-1]
    assert table[2:9:3] == ENTRIES[2:9:3]
    assert table.frames.tolist() == [each.frames for each in ENTRIES]
    assert list(pickle.loads(pickle.dumps(table))) == ENTRIES
    with pytest.raises(IndexError):
        table[11]


def test_those_of_one_rate_and_one_set_of_views_are_found_together():
    groups = EpisodeTable(ENTRIES).alike()
    assert sorted(number for _, numbers in groups for number in numbers.tolist()) == list(range(11))
    for first, numbers in groups:
        for number in numbers.tolist():
            assert (ENTRIES[number].hz, ENTRIES[number].views) == (first.hz, first.views)
    assert len(groups) == 4


def epoch_by_definition(plan: EpochPlan, epoch: int) -> np.ndarray:
    """A folder's n-th pass is a permutation; epochs take the next part of the passes, shuffled together."""
    total, numbers = int(plan.windows.sum()), []
    for folder, (count, windows) in enumerate(zip(plan.counts.tolist(), plan.windows.tolist(), strict=True)):
        for position in range(epoch * count, (epoch + 1) * count):
            turn, place = divmod(position, windows)
            order = generator(plan.seed, Stream.PASS, turn, folder).permutation(windows)
            numbers.append(turn * total + int(plan.windows[:folder].sum()) + order[place])
    return generator(plan.seed, Stream.EPOCH, epoch).permutation(np.array(numbers))


@pytest.mark.parametrize(
    ("windows", "weights", "size"), [([7], None, None), ([7, 3], [1.0, 2.0], 25), ([4, 9], None, 5)]
)
def test_the_stream_is_the_defined_one(windows, weights, size):
    plan = EpochPlan(windows, weights, size, seed=3)
    for epoch in range(4):
        assert plan.epoch(epoch).tolist() == epoch_by_definition(plan, epoch).tolist()


def test_numbers_are_small_where_they_can_be_and_large_where_they_must():
    """NumPy draws the same whatever the type of what it shuffles, on which resuming old runs relies."""
    plan, late = EpochPlan([70_000, 30_000], None, None, seed=3), 2**31
    first = [generator(3, Stream.PASS, 0, n).permutation(size) for n, size in enumerate((70_000, 30_000))]
    wanted = np.concatenate([first[0], 70_000 + first[1]])
    assert np.array_equal(plan.epoch(0), generator(3, Stream.EPOCH, 0).permutation(wanted))
    assert plan.epoch(0).dtype == np.uint32
    few = EpochPlan([3, 2], None, None, seed=3)
    assert few.epoch(late).tolist() == epoch_by_definition(few, late).tolist()
    assert few.epoch(late).min() > np.iinfo(np.uint32).max


def test_numbers_are_walked_lazily_from_the_step_asked_for(monkeypatch: pytest.MonkeyPatch):
    plan = EpochPlan([100], None, None, seed=0)
    sampler = EpochSampler(range(100), plan, batch_size=5, ranks=2, rank=1)
    sampler.resume(2, 3)
    drawn = []
    monkeypatch.setattr(EpochPlan, "epoch", lambda self, epoch: drawn.append(epoch) or np.arange(100))
    rows = iter(sampler)
    sampler.epoch, sampler.step = 9, 0  # the iteration is of the epoch in which it was begun
    assert isinstance(rows, Iterator)
    assert drawn == []
    assert list(rows) == [start + i for start in range(35, 100, 10) for i in range(5)]
    assert drawn == [2]


def test_the_cost_of_a_large_index(tmp_path):
    """Bars of 750 bytes per episode of four views: an object each would cost 2 kB."""
    write_index(tmp_path, 4_000, 30)
    tries = [measure_scale(str(tmp_path)) for _ in range(2)]  # what is imported late counts in the first one
    cost = {name: min(each[name] for each in tries) for name in tries[0]}
    assert cost["MB of the index"] < 3
    assert cost["MB of a forked worker"] < 3, cost
