"""Order: epochs, ranks, validation, resumption, and what Lightning makes of the loaders."""

from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data.distributed import DistributedSampler

from datamodules.sampling import EpochPlan, EpochSampler, FixedSampler, spread
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.reader import ShardSet
from tests.square_shards import CLIP, SOURCE, WINDOWS, keys, module, record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(SOURCE, tmp_path_factory.mktemp("order"))


def everything(loader):
    return [(b.keys, b.prompts, b.video.sum().item(), b.actions.sum().item()) for b in loader]


def test_an_epoch_holds_every_window_once_and_no_two_are_alike(folder):
    loader = module(folder, batch_size=3).train_dataloader()
    epochs = [keys(loader) for _ in range(3)]
    every = {f"{e.key}@{start}" for e in ShardSet(folder).episodes for start in range(e.frames)}
    assert len(every) == WINDOWS
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == WINDOWS // 3 * 3
        assert set(epoch) <= every
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("views_per_sample", [None, 1])
def test_order_and_contents_follow_from_seed_and_epoch(views_per_sample, folder):
    def epoch(number, **arguments):
        loader = module(folder, views_per_sample=views_per_sample, **arguments).train_dataloader()
        loader.sampler.set_epoch(number)
        return everything(loader)

    torch.manual_seed(1)
    reference = epoch(2, seed=5)
    torch.manual_seed(2)
    np.random.default_rng(3)
    assert epoch(2, seed=5) == reference
    assert epoch(2, seed=5, workers=2) == reference
    assert epoch(2, seed=6) != reference
    assert epoch(3, seed=5) != reference


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_its_state_says(workers, folder):
    data = module(folder, workers=workers)
    whole = [keys(loader) for loader in [data.train_dataloader()] for _ in range(2)]
    steps = len(whole[0]) // 4
    for stop in (1, steps - 1, steps):
        interrupted = module(folder, workers=workers).train_dataloader()
        before = [key for _, batch in zip(range(stop), interrupted, strict=False) for key in batch.keys]
        again = module(folder, workers=2 - workers).train_dataloader()
        again.load_state_dict(interrupted.state_dict())
        following = [keys(again) for _ in range(2)]
        assert interrupted.state_dict() == {"epoch": 0, "step": stop}
        assert before == whole[0][: 4 * stop]
        assert following[0] == (whole[0][4 * stop :] if stop < steps else whole[1])
        assert stop == steps or following[1] == whole[1]


def test_folders_share_an_epoch_by_weight(tmp_path, folder):
    other = record(replace(SOURCE, episodes=1, frames=5), tmp_path / "other")
    data = module({folder: 0.25, other: 0.75}, epoch_size=20, batch_size=1)
    sampler = data.train_dataloader().sampler
    numbers = np.concatenate([sampler.plan.epoch(e) % (WINDOWS + 5) for e in range(10)])
    assert (numbers < WINDOWS).sum() == 50
    assert len(np.unique(numbers[numbers < WINDOWS])) == 50  # no window again before the pass is over
    assert np.bincount(numbers[numbers >= WINDOWS] - WINDOWS).tolist() == [30] * 5
    assert len(module([folder, other], batch_size=1).train_dataloader()) == WINDOWS + 5


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_each_step_of_an_epoch(ranks):
    plan = EpochPlan([90], None, None, seed=0)
    samplers = [EpochSampler(range(90), plan, 8 // ranks, ranks, rank) for rank in range(ranks)]
    parts = [
        np.array(list(sampler)).reshape(len(sampler.plan.counts), -1, 8 // ranks) for sampler in samplers
    ]
    steps = np.concatenate(parts, axis=2)[0]
    assert np.array_equal(
        steps, plan.epoch(0)[:88].reshape(11, 8)
    )  # the same samples per step for any number of ranks
    assert {len(sampler) for sampler in samplers} == {88 // ranks}


def test_validation_windows_are_fixed_and_on_one_rank_each(folder):
    data = module(folder, val=folder)
    loader = data.val_dataloader()
    every = [f"{e.key}@{s}" for e in ShardSet(folder).episodes for s in (0, 8)]
    assert keys(loader) == keys(loader)
    assert sorted(keys(loader)) == sorted(keys(data.predict_dataloader())) == sorted(every)
    assert keys(data.predict_dataloader()) == every
    half = keys(loader)[: len(every) // 2]
    assert len({key.partition("@")[0] for key in half}) == len(half)  # every episode once
    assert {key.partition("@")[2] for key in half} == {"0", "8"}
    parts = [list(FixedSampler(range(7), 3, rank, np.arange(7)[::-1])) for rank in range(3)]
    assert sorted(number for part in parts for number in part) == [1, 2, 3, 4, 5, 6]
    parts = [list(FixedSampler(range(7), 3, rank)) for rank in range(3)]
    assert parts == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("task_of", [lambda e: e // 16, lambda e: e % 3], ids=["contiguous", "interleaved"])
def test_any_beginning_of_a_validation_is_spread(task_of):
    """48 episodes of three tasks, of 1 to 6 windows, and a second folder of five episodes."""
    counts = [1 + np.arange(48) % 6, np.full(5, 2)]
    order = spread(counts)
    assert sorted(order.tolist()) == list(range(sum(int(each.sum()) for each in counts)))
    begins = np.cumsum([0, *np.concatenate(counts)])
    episodes = np.searchsorted(begins, order, side="right") - 1
    assert {episode >= 48 for episode in episodes[:2].tolist()} == {True, False}
    for first in (12, 16, 32, 53):
        assert len(set(episodes[:first].tolist())) == first
        here = episodes[:first][episodes[:first] < 48]
        tasks = np.bincount([task_of(episode) for episode in here.tolist()], minlength=3)
        assert tasks.min() >= 1
        assert tasks.max() - tasks.min() <= 3
    empty = np.where(np.arange(1000) % 50 == 0, 1, 0)  # most episodes are too short for a window
    assert np.bincount((spread([empty, np.full(100, 3)])[:32] >= 20).astype(int)).tolist() == [16, 16]
    later = (order - begins[episodes])[:48]
    assert len(set(later.tolist())) > 3  # not the beginnings of the episodes alone


class Counting(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, batch.keys))
        return (self.weight - batch.actions.mean()) ** 2

    def validation_step(self, batch, index):
        self.validated.append(batch.keys)

    def predict_step(self, batch, index):
        return batch.keys

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet(test):
    """Ignore two warnings of Lightning: one of its own making with this torch, one about our tiny data."""
    for message in ("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers:UserWarning"):
        test = pytest.mark.filterwarnings(message)(test)
    return test


@pytest.fixture
def trainer(tmp_path):
    return lambda **arguments: lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path, **arguments,
    )  # fmt: skip


@quiet
def test_lightning_gives_each_epoch_its_own_order(folder, trainer):
    model, data = Counting(), ShardDataModule(CLIP, folder, folder, batch_size=8, workers=0)
    trainer(max_epochs=2).fit(model, datamodule=data)
    plain = module(folder, batch_size=8).train_dataloader()
    for epoch in range(2):
        assert [k for e, k in model.seen if e == epoch] == [batch.keys for batch in plain]
    assert model.validated[0] == model.validated[1]
    predicted = trainer().predict(model, datamodule=data)
    assert [sorted(keys) for keys in predicted] == [sorted(keys) for keys in model.validated[:1]]


@quiet
def test_without_validation_data_lightning_does_not_validate(folder, trainer):
    model = Counting()
    with pytest.warns(UserWarning, match="have no `val_dataloader`. Skipping val loop"):
        trainer(max_epochs=1).fit(model, datamodule=ShardDataModule(CLIP, folder, batch_size=8, workers=0))
    assert len(model.seen) == WINDOWS // 8
    assert not model.validated


@quiet
@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
def test_lightning_may_put_its_own_sampler_in_place(folder, trainer):
    model, data = Counting(), ShardDataModule(CLIP, folder, folder, batch_size=8, workers=0)
    trainer(max_epochs=2, overfit_batches=1).fit(model, datamodule=data)
    assert model.seen[0][1] == model.seen[1][1]


def test_lightning_leaves_the_samplers_alone(folder):
    data = module(folder, val=folder)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader.sampler, DistributedSampler)  # what its data connector looks for
