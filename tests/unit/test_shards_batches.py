"""From shards to batches: windows, order, ranks, and what bad data does."""

import warnings
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data.distributed import DistributedSampler

from ai_wam.types import Clip
from ai_wam.video import VideoEncoding
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.sampling import EpochPlan, EpochSampler, FixedSampler, spread
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet

SOURCE = MovingSquares(episodes=4, frames=12, size=(32, 32), views=("front", "wrist"))
CLIP = Clip(frames=3, stride=4, control_hz=20.0, size=(32, 32), views=("front", "wrist"))
WINDOWS = 12 + 13 + 14 + 12


def record(source, folder):
    write_shards(source, folder, 2, workers=0, encoding=VideoEncoding(lossless=True), progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(SOURCE, tmp_path_factory.mktemp("batches"))


def module(folder, clip=CLIP, **arguments):
    data = ShardDataModule(clip, folder, **{"batch_size": 4, "workers": 0, **arguments})
    data.setup("fit")
    return data


def keys(loader):
    return [key for batch in loader for key in batch.keys]


def test_signs_of_quaternions_do_not_jump_in_shards_and_batches(tmp_path, monkeypatch):
    """A tool that turns by 1.5 half turns in 12 frames; older shards hold w >= 0 in every frame."""
    half = 0.25 * np.pi + np.arange(12) * 0.12
    smooth = np.stack([np.sin(half), 0 * half, 0 * half, np.cos(half)], axis=1)
    source = Turned(np.where(smooth[:, 3:] < 0, -smooth, smooth))
    new = record(source, tmp_path / "new")
    assert np.allclose(ShardSet(new).header(0).actions[:, 3:7], smooth)
    monkeypatch.setattr("datamodules.shards.episode_encoding.continuous_actions", np.array)
    old = record(source, tmp_path / "old")
    assert (ShardSet(old).header(0).actions[:, 6] >= 0).all()
    clip = Clip(frames=4, stride=1, control_hz=20.0, size=(32, 32), views=("front",))
    for folder in (new, old):
        data = module(folder, clip, pad="none", batch_size=9)
        batch = next(iter(data.train_dataloader()))
        quaternions = batch.actions[..., 3:7]
        assert (quaternions[:, 0, 3] >= 0).all()
        assert ((quaternions[:, 1:] * quaternions[:, :-1]).sum(-1) > 0.99).all()


class Turned:
    """One recording with these rotations."""

    def __init__(self, quaternions):
        self.quaternions, self.episode = quaternions, MovingSquares(1, len(quaternions), (32, 32))[0]
        self.frames = list(self.episode.frames)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        actions = (
            np.concatenate([frame.action[:3], turned, frame.action[7:]])
            for frame, turned in zip(self.frames, self.quaternions, strict=True)
        )
        frames = (replace(f, action=action) for f, action in zip(self.frames, actions, strict=True))
        return replace(self.episode, frames=frames)


def test_a_batch_is_the_recording(folder):
    batch = next(iter(module(folder).train_dataloader()))
    assert batch.video.shape == (4, 2, 3, 3, 32, 32)
    assert batch.cameras.shape == (4, 2, 3)
    assert batch.view_mask.all()
    assert batch.video_valid.all()
    assert batch.action_valid.all()
    for row, key in enumerate(batch.keys):
        name, start = key.split("@")
        episode = SOURCE[int(name.split("-")[1])]
        frames = list(episode.frames)
        assert batch.prompts[row] in episode.instructions
        for t in range(3):
            frame = frames[min(int(start) + 4 * t, len(frames) - 1)]
            assert np.allclose(batch.actions[row, t], frame.action, atol=1e-6)
            for v, view in enumerate(CLIP.views):
                image = torch.from_numpy(frame.views[view].image).permute(2, 0, 1) / 127.5 - 1
                assert torch.allclose(batch.video[row, v, :, t], image, atol=1e-6)
                pose = torch.from_numpy(frame.views[view].world_from_camera).float()
                assert torch.allclose(batch.cameras.world_from_camera[row, v, t], pose)
                assert np.allclose(batch.cameras.intrinsics[row, v, t], frame.views[view].intrinsics)


def test_pictures_and_intrinsics_are_resized_together(folder):
    clip = replace(CLIP, size=(16, 8))
    batch = next(iter(module(folder, clip).train_dataloader()))
    assert batch.video.shape[-2:] == (16, 8)
    k = batch.cameras.intrinsics[0, 0, 0]
    assert torch.allclose(
        k, torch.tensor([[16.0, 0, 4], [0, 16, 8], [0, 0, 1]])
    )  # 32 x 16 cropped, then halved


def test_only_the_first_frame_is_decoded_when_that_is_enough(folder):
    whole, first = (
        next(iter(module(folder, decode=decode).train_dataloader())) for decode in ("all", "first")
    )
    assert first.keys == whole.keys
    assert torch.equal(first.video[:, :, :, 0], whole.video[:, :, :, 0])
    assert not first.video[:, :, :, 1:].any()
    assert first.video_valid.tolist() == [[True, False, False]] * 4
    assert torch.equal(first.actions, whole.actions)
    assert torch.equal(first.cameras.world_from_camera, whole.cameras.world_from_camera)


def test_an_epoch_holds_every_window_once_and_no_two_are_alike(folder):
    loader = module(folder, batch_size=3).train_dataloader()
    epochs = [keys(loader) for _ in range(3)]
    every = {f"{e.key}@{start}" for e in ShardSet(folder).episodes for start in range(e.frames)}
    assert len(every) == WINDOWS
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == WINDOWS // 3 * 3
        assert set(epoch) <= every
    assert epochs[0] != epochs[1] != epochs[2]


def test_padding_none_gives_whole_windows_only(folder):
    found = keys(module(folder, pad="none", batch_size=1).train_dataloader())
    every = {f"{e.key}@{start}" for e in ShardSet(folder).episodes for start in range(e.frames - 8)}
    assert set(found) == every


def test_padding_hold_repeats_the_last_frame(folder):
    for batch in module(folder).train_dataloader():
        for row, key in enumerate(batch.keys):
            name, start = key.split("@")
            if int(start) == 11 and name == "squares-0000":
                assert torch.equal(batch.video[row, :, :, 0], batch.video[row, :, :, 2])
                assert torch.equal(batch.actions[row, 0], batch.actions[row, 2])
                assert batch.video_valid[row].all()
                assert batch.recorded[row].tolist() == [True, False, False]
                assert batch.action_valid[row].all()
                return
    raise AssertionError("the last window of the first episode did not come")


def everything(loader):
    return [(b.keys, b.prompts, b.video.sum().item(), b.actions.sum().item()) for b in loader]


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


def test_phrasings_and_views_vary(folder):
    batches = list(module(folder, views_per_sample=1).train_dataloader())
    assert {prompt for batch in batches for prompt in batch.prompts} == set(SOURCE[0].instructions)
    moved = [batch.cameras.world_from_camera[i, 0, 0, 0, 3] > 0 for batch in batches for i in range(4)]
    assert batches[0].video.shape == (4, 1, 3, 3, 32, 32)
    assert any(moved)
    assert not all(moved)


def test_validation_draws_the_views_of_an_episode_once(folder):
    def views(seed: int, **more) -> dict[str, list[list[str]]]:
        found = {}
        for batch in module(folder, views_per_sample=1, seed=seed, val=folder, **more).val_dataloader():
            for row, key in enumerate(batch.keys):
                moved = bool(batch.cameras.world_from_camera[row, 0, 0, 0, 3] > 0)
                found.setdefault(key.split("@")[0], []).append(moved)
        return found

    first = views(0)
    assert all(len(set(windows)) == 1 for windows in first.values())
    assert any(len(windows) > 1 for windows in first.values())
    assert views(0, batch_size=2, workers=1) == first
    assert {windows[0] for seed in range(4) for windows in views(seed).values()} == {False, True}


def test_missing_views_and_actions_are_masked(tmp_path, folder):
    front = record(replace(SOURCE, views=("front",), actions=False), tmp_path / "front")
    seen = []
    for batch in module([front, folder]).train_dataloader():
        for row, mask in enumerate(batch.view_mask.tolist()):
            seen.append(tuple(mask))
            assert bool(batch.action_valid[row].any()) == mask[1]  # what lacks the view lacks actions too
            assert bool(batch.actions[row].any()) == mask[1]
            assert bool(batch.video[row, 1].any()) == mask[1]
    assert set(seen) == {(True, True), (True, False)}
    with pytest.raises(ValueError, match=r"'wrist', which no episode .* the recorded views are \['front'\]"):
        module(front)
    with pytest.raises(ValueError, match=r"has views \['front'\], the clip wants \['overhead'\]"):
        module(front, replace(CLIP, views=("overhead",)))
    with pytest.raises(ValueError, match=r"views_per_sample is 3, the clip has 2 views"):
        module(front, views_per_sample=3)


def test_windows_that_hardly_anything_was_recorded_of_are_left_out_of_training(folder):
    """From one frame of the clip to the next there are four recorded ones."""
    data = module(folder, val=folder, window_least=2, batch_size=1)
    batches = list(data.train_dataloader())
    assert sum(len(batch.keys) for batch in batches) == WINDOWS - 4 * 4
    assert all(bool((batch.recorded.sum(1) >= 2).all()) for batch in batches)
    assert data.stream()["window_least"] == 2
    assert "window_least" not in module(folder).stream()  # as in checkpoints from before the option
    untouched = keys(module(folder, val=folder, batch_size=1).val_dataloader())
    assert keys(data.val_dataloader()) == untouched
    with pytest.raises(ValueError, match=r"window_least 4 must lie between 1 and the clip's 3 frames"):
        module(folder, window_least=4)
    with pytest.raises(ShardError, match="lower window_least"):
        module(folder, replace(CLIP, frames=5), window_least=5)


def test_recordings_of_another_rate(tmp_path, folder):
    slow = record(replace(SOURCE, hz=5.0), tmp_path / "slow")
    batch = next(iter(module(slow).train_dataloader()))  # every recorded frame is one of the clip's
    name, start = batch.keys[0].split("@")
    frames = list(SOURCE[int(name.split("-")[1])].frames)
    assert np.allclose(batch.actions[0, 1], frames[min(int(start) + 1, len(frames) - 1)].action, atol=1e-6)
    message = r"recorded at 20 Hz, a clip of stride 1 at 30 Hz .* at 30, 60, 90, 120, 150, 180 \.\.\. Hz fit"
    with pytest.raises(ValueError, match=message):
        module(folder, replace(CLIP, stride=1, control_hz=30.0))
    with pytest.raises(ShardError, match="no episode is long enough for a clip of 9 frames"):
        module(folder, replace(CLIP, frames=9), pad="none")


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


@pytest.fixture
def damaged(tmp_path):
    path = record(SOURCE, tmp_path / "damaged")
    member = ShardSet(path).episodes[1].members["front.mp4"]
    shard = tmp_path / "damaged" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[member.offset + member.size // 2] ^= 255
    shard.write_bytes(data)
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_stops_the_run_or_is_skipped_and_counted(workers, damaged):
    with pytest.raises(
        ShardError, match=r"shard-000000.tar, key 'squares-0001', member 'front.mp4' is damaged"
    ):
        keys(module(damaged, workers=workers, batch_size=WINDOWS).train_dataloader())
    data = module(damaged, workers=workers, batch_size=WINDOWS, on_error="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = keys(data.train_dataloader())
    assert len(left) == WINDOWS - 13
    assert not any(key.startswith("squares-0001") for key in left)
    assert data.skipped == 13
    assert workers or any(
        "squares-0001" in str(w.message) and "(13 so far)" in str(w.message) for w in caught
    )
    with pytest.warns(UserWarning, match="13 damaged samples were left out"):
        data.teardown("fit")


def test_verification_and_missing_folders_stop_the_setup(damaged, tmp_path):
    with pytest.raises(ShardError, match="has the checksum"):
        module(damaged, verify=True)
    with pytest.raises(
        ShardError, match=r"absent is not a folder; .*`ai-wam collect` or `ai-wam convert --out"
    ):
        module(str(tmp_path / "absent"))


def test_bad_arguments_are_named(folder):
    with pytest.raises(ValueError, match="an epoch of 51 samples does not fill one batch of 64 on 1 rank"):
        module(folder, batch_size=64).train_dataloader()
    with pytest.raises(ValueError, match="all must be above 0"):
        module({folder: -1.0}).train_dataloader()
    with pytest.raises(ValueError, match="each needs at least 1"):
        EpochPlan([10, 10], [0.999, 0.001], 10, 0)
    with pytest.raises(ValueError, match="batch_size 0"):
        ShardDataModule(CLIP, folder, batch_size=0)
    with pytest.raises(RuntimeError, match="call setup"):
        ShardDataModule(CLIP, folder).train_dataloader()
    with pytest.raises(ValueError, match="1 validation windows are too few for 2 ranks"):
        FixedSampler(range(1), 2, 0)
