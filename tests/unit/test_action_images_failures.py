"""What decoding does with evidence that is missing, wrong or broken: a status, never a made-up pose."""

import math

import pytest
import torch

from ai_wam.action_images import ActionImageTokenizer, DecodeStatus
from ai_wam.cameras import Cameras
from ai_wam.poses import slerp
from benchmarks.speed.codec_rig import (
    EYES,
    Errors,
    eight_bit,
    noisy,
    patch_codec,
    rig,
    trajectory,
    turned_rig,
)

TOKENIZER = ActionImageTokenizer()
STEPS, SIZE = 13, 64
OK, RESCUED, FILLED, OFFSCREEN = (
    DecodeStatus.OK,
    DecodeStatus.RESCUED,
    DecodeStatus.FILLED,
    DecodeStatus.OFFSCREEN,
)
INCONSISTENT, DEGENERATE, NONFINITE = (
    DecodeStatus.INCONSISTENT,
    DecodeStatus.DEGENERATE,
    DecodeStatus.NONFINITE,
)


def scene(views=2, seed=0, size=SIZE):
    cameras, actions = rig(EYES[:views], STEPS, size), trajectory(STEPS, seed)
    return actions, cameras, TOKENIZER.encode(actions, cameras, (size, size))


def worst(decoded, actions, steps=slice(None)):
    """Largest error in millimetres over the steps that claim to be valid."""
    error = 1e3 * (decoded.actions - actions)[0, steps, :3].norm(dim=-1)
    return float(error[decoded.valid[0, steps]].max())


def assert_only(decoded, steps, status):
    """The steps have the status, all others are OK."""
    expected = torch.zeros(STEPS, dtype=torch.long)
    expected[steps] = int(status)
    assert decoded.status[0].tolist() == expected.tolist()


def test_one_view_is_degenerate_and_still_tells_the_openness():
    actions, cameras, images = scene(views=1)
    decoded = TOKENIZER.decode(images, cameras)
    assert (decoded.status == DEGENERATE).all()
    assert not decoded.valid.any()
    assert decoded.actions[..., :7].isnan().all()
    assert torch.equal(decoded.actions[..., 7], actions[..., 7])
    assert (decoded.confidence == 0).all()
    assert decoded.position_std.isinf().all()
    assert decoded.pixels.isfinite().all()


@pytest.mark.parametrize("degrees", [0.0, 1.0])
def test_views_too_close_together_are_degenerate(degrees):
    actions, cameras = trajectory(STEPS, 0), turned_rig(degrees, STEPS, SIZE)
    decoded = TOKENIZER.decode(eight_bit(TOKENIZER.encode(actions, cameras, (SIZE, SIZE))), cameras)
    assert (decoded.status == DEGENERATE).all()
    assert decoded.actions[..., :7].isnan().all()


def test_mirror_twins_are_distinguished_or_flagged():
    actions, cameras = trajectory(41, 1), turned_rig(5.0, 41, 256)
    images = TOKENIZER.encode(actions, cameras, (256, 256))
    for level in (0.02, 0.2):
        errors = Errors.of(TOKENIZER.decode(noisy(level)(images), cameras), actions)
        assert errors.kept(errors.rotation).max() < 40  # the twin is wrong by up to 180 degrees


def test_a_black_step_is_bridged():
    actions, cameras, images = scene()
    images[:, :, :, 6] = 0
    decoded = TOKENIZER.decode(images, cameras)
    assert_only(decoded, [6], FILLED)
    assert not decoded.valid[0, 6]
    assert decoded.confidence[0, 6] == 0
    assert torch.allclose(decoded.actions[0, 6, :3], (actions[0, 5, :3] + actions[0, 7, :3]) / 2, atol=1e-4)
    halfway = slerp(actions[0, 5, 3:7], actions[0, 7, 3:7], torch.tensor(0.5))
    assert (decoded.actions[0, 6, 3:7] * halfway).sum().abs() > 1 - 1e-5
    assert decoded.actions[0, 6, 7] == decoded.actions[0, 5, 7]
    assert decoded.pixels[0, :, 6].isnan().all()
    assert (decoded.weight[0, :, 6] == 0).all()
    assert worst(decoded, actions) < 0.01


def test_decoded_quaternions_follow_the_motion():
    """w changes its sign on the way, next to a step that shows nothing; the numbers go smoothly through."""
    actions, cameras, _ = scene()
    half = 0.2 + torch.linspace(0, 1.7 * math.pi, STEPS)
    actions[0, :, 3:7] = torch.stack([half.sin(), 0 * half, 0 * half, half.cos()], dim=-1)
    images = TOKENIZER.encode(actions, cameras, (SIZE, SIZE))
    hidden = int((half > math.pi / 2).nonzero()[0])
    images[:, :, :, hidden] = 0
    decoded = TOKENIZER.decode(images, cameras)
    assert decoded.valid[0].sum() == STEPS - 1
    assert torch.allclose(decoded.actions[0, :, 3:7], actions[0, :, 3:7], atol=0.02)


def test_black_ends_are_held():
    _, cameras, images = scene()
    images[:, :, :, :2] = 0
    images[:, :, :, -1] = 0
    decoded = TOKENIZER.decode(images, cameras)
    assert_only(decoded, [0, 1, STEPS - 1], FILLED)
    assert torch.equal(decoded.actions[0, :2], decoded.actions[0, 2:3].expand(2, 8))
    assert torch.equal(decoded.actions[0, -1, :7], decoded.actions[0, -2, :7])


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, math.nan])
def test_nothing_seen_means_no_pose(value):
    _, cameras, images = scene()
    decoded = TOKENIZER.decode(torch.full_like(images, value), cameras)
    assert (decoded.status == (NONFINITE if math.isnan(value) else FILLED)).all()
    assert decoded.actions.isnan().all()
    assert not decoded.valid.any()


def test_pure_noise_is_never_ok():
    _, cameras, images = scene()
    for level in (0.05, 0.3, 1.0):
        decoded = TOKENIZER.decode(noisy(level)(torch.zeros_like(images)), cameras)
        assert not (decoded.status == OK).any()


def test_a_view_gone_dark_is_off_screen_with_two_and_harmless_with_three():
    actions, cameras, images = scene(views=3)
    images[:, 1, :, 4:6] = 0
    decoded = TOKENIZER.decode(images, cameras)
    assert_only(decoded, [], OK)
    assert worst(decoded, actions) < 0.01
    assert (decoded.weight[0, 1, 4:6] == 0).all()
    decoded = TOKENIZER.decode(images[:, :2], cameras[:, :2])
    assert_only(decoded, [4, 5], OFFSCREEN)


def test_one_missing_blob_is_rescued():
    actions, cameras, images = scene()
    images[:, 0, 1, 3] = 0
    images[:, 1, 0, 8] = 0
    decoded = TOKENIZER.decode(eight_bit(images), cameras)
    assert_only(decoded, [3, 8], RESCUED)
    assert worst(decoded, actions) < 1


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("view", [0, 1])
def test_one_wrong_blob_is_rescued(view, channel):
    actions, cameras, images = scene(size=128)
    images[:, view, channel, 7] = images[:, view, channel, 7].roll((30, 25), (-2, -1))
    decoded = TOKENIZER.decode(eight_bit(images), cameras)
    assert_only(decoded, [7], RESCUED)
    assert worst(decoded, actions) < 3
    assert decoded.weight[0, view, 7, channel] == 0


def test_a_wrong_view_is_inconsistent_with_two_and_outvoted_with_three():
    actions, cameras, images = scene(views=3, size=128)
    other = TOKENIZER.encode(trajectory(STEPS, 77), cameras, (128, 128))
    images[:, 0, :, 5:8] = other[:, 0, :, 5:8]
    decoded = TOKENIZER.decode(images, cameras)
    assert_only(decoded, [], OK)
    assert worst(decoded, actions) < 0.01
    decoded = TOKENIZER.decode(images[:, :2], cameras[:, :2])
    assert_only(decoded, [5, 6, 7], INCONSISTENT)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_single_broken_pixels_cost_nothing(value):
    actions, cameras, images = scene()
    peak = images[0, 0, 0, 4].argmax()
    images[0, 0, 0, 4].view(-1)[peak] = value
    images[0, 1, 2, 5, 3, 3] = value
    decoded = TOKENIZER.decode(images, cameras)
    assert_only(decoded, [], OK)
    assert worst(decoded, actions) < 0.01


def test_a_broken_channel_costs_one_blob_and_a_broken_step_the_step():
    actions, cameras, images = scene(views=3)
    images[:, 1, 2, 4] = math.nan
    images[:, :, :, 9] = math.inf
    decoded = TOKENIZER.decode(images, cameras)
    assert_only(decoded, [9], NONFINITE)
    assert worst(decoded, actions) < 0.01
    assert decoded.weight[0, 1, 4].tolist() == [1, 1, 0]


@pytest.mark.parametrize("broken", ["intrinsics", "pose", "focal"])
def test_a_broken_camera_costs_its_clip_only(broken):
    actions, one, images = scene()
    cameras = one.map(lambda m: m.repeat(2, *[1] * (m.dim() - 1)))
    k, e = cameras.intrinsics, cameras.world_from_camera
    if broken == "intrinsics":
        k[1, 0] = math.nan
    elif broken == "pose":
        e[1, 0] = math.nan
    else:
        k[1, 0, :, 0, 0] = 0
    decoded = TOKENIZER.decode(images.repeat(2, 1, 1, 1, 1, 1), Cameras(k, e))
    assert (decoded.status[1] == NONFINITE).all()
    assert decoded.actions[1, :, :7].isnan().all()
    assert (decoded.status[0] == OK).all()
    assert torch.allclose(decoded.actions[0, :, :3], actions[0, :, :3], atol=1e-5)


def test_masked_views_are_ignored():
    actions, cameras, images = scene(views=3)
    images[:, 2] = TOKENIZER.encode(trajectory(STEPS, 5), cameras, (SIZE, SIZE))[:, 2]
    masked = TOKENIZER.decode(images, cameras, view_mask=torch.tensor([[True, True, False]]))
    assert (masked.status == OK).all()
    assert worst(masked, actions) < 0.01
    assert masked.pixels[:, 2].isnan().all()
    single = TOKENIZER.decode(images, cameras, view_mask=torch.tensor([[True, False, False]]))
    assert (single.status == DEGENERATE).all()
    assert torch.equal(single.actions[..., 7], actions[..., 7])


def test_blobs_cut_by_the_border_are_used_or_flagged():
    cameras = rig(EYES[:2], 41, 128)
    parts = []
    for seed in range(3):
        actions = trajectory(41, seed)
        actions[..., :3] *= 2
        images = eight_bit(TOKENIZER.encode(actions, cameras, (128, 128)))
        parts.append(Errors.of(TOKENIZER.decode(images, cameras), actions))
    errors = Errors.join(parts)
    assert 0 < errors.flagged.float().mean() < 0.25
    assert errors.kept(errors.position).quantile(0.95) < 0.2
    assert errors.kept(errors.position).max() < 10


@pytest.mark.parametrize("pixels", [1, 2])
@pytest.mark.parametrize("every", [1, 4])
def test_views_that_disagree_by_pixels_are_valid_but_less_trusted(pixels, every):
    """Blobs of a small generated video are a pixel or two off."""
    actions, cameras, images = scene()
    clean = TOKENIZER.decode(images, cameras)
    images[:, 1, :, ::every] = images[:, 1, :, ::every].roll((pixels, -pixels), (-2, -1))
    decoded = TOKENIZER.decode(images, cameras)
    assert decoded.valid.all()
    assert (decoded.confidence[0, ::every] < 0.95 * clean.confidence[0, ::every]).all()
    assert worst(decoded, actions) < 30 * pixels


def test_images_of_a_lossy_patch_codec_are_read():
    for seed in range(3):
        actions, cameras, images = scene(seed=seed)
        decoded = TOKENIZER.decode(patch_codec(48, 0.5)(images), cameras)
        assert decoded.valid.float().mean() > 0.9
        assert worst(decoded, actions) < 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, c, m: (i[:, :, 0], c, m), r"images must be \[b, v, 3, t, h, w\]"),
        (lambda i, c, m: (i.long(), c, m), r"uint8, got torch.int64"),
        (lambda i, c, m: (i, c[:, :1], m), r"need cameras \[b, v, t\] = \[1, 2, 13\]"),
        (lambda i, c, m: (i, c[:, :, :5], m), r"expand cameras that do not move"),
        (lambda i, c, m: (i[:, :0], c[:, :0], m), r"all >= 1"),
        (lambda i, c, m: (i, c, m[:, :1]), r"view_mask must be \[b, v\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    _, cameras, images = scene()
    images, cameras, mask = change(images, cameras, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=message
    ):  # the check itself: the tests' shape checker comes before decode
        TOKENIZER._check_decode(images, cameras, mask)
