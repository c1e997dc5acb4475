"""From shards to batches: windows, views, masks, and what bad data does."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ai_wam.types import Clip
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.sampling import EpochPlan, FixedSampler
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet
from tests.square_shards import CLIP, SOURCE, WINDOWS, keys, module, record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(SOURCE, tmp_path_factory.mktemp("batches"))


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
    data.train_dataloader()
    saved = data.state_dict()
    del saved["stream"]["window_least"]  # as in checkpoints from before the option, which had 1
    data.load_state_dict(saved)
    with pytest.raises(ValueError, match="window_least: 1 != 2"):
        data.train_dataloader()
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
