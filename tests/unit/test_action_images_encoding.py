"""Drawing actions: conventions, parity with a plain statement, what is not drawn, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_wam.action_images import ActionImageTokenizer, tool_points
from ai_wam.cameras import Cameras
from ai_wam.poses import rotation_from_quaternion
from benchmarks.speed.codec_rig import EYES, negative_focal_rig, rig, trajectory

TOKENIZER = ActionImageTokenizer()


def released_images(actions, cameras, size):
    """Every pixel by itself, as the released code draws: centres on integers, openness 0 or 1."""
    h, w = size
    points = tool_points(actions.double(), 0.1)[:, None].expand(*cameras.shape, 3, 3)
    u = cameras.to(torch.float64).project(points, size).pixels.movedim(3, 2)  # b v 3 t 2
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    square = (x - u[..., 0, None, None]) ** 2 + (y - u[..., 1, None, None]) ** 2
    images = torch.exp(-square / (2 * (0.05 * min(h, w)) ** 2))
    closed_or_open = (actions[:, None, :, 7, None, None] > 0.5).double()
    blue = images[:, :, 2].clone()
    images[:, :, 2] = torch.where(blue <= 0.25, 0.25 * closed_or_open, blue)
    return images, (blue - 0.25).abs() < 1e-6


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (96, 170)])
@pytest.mark.parametrize("make", [lambda t, s: rig(EYES[:2], t, s), negative_focal_rig])
def test_released_convention_is_reproduced(size, make):
    cameras, actions = make(5, min(size)), trajectory(5, 3)
    expected, on_edge = released_images(actions, cameras, size)
    images = ActionImageTokenizer(binary_openness=True, pixel_center=0.0).encode(actions, cameras, size)
    difference = (images - expected).abs()
    assert on_edge.sum() < 5
    difference[:, :, 2][on_edge] = 0
    assert difference.max() < 1e-5


def test_centre_of_mass_lies_at_the_projection():
    cameras, size = rig(EYES[:2], 1, 128), (128, 128)
    actions = torch.tensor([[[0.02, -0.03, 0.04, 0.1, 0.2, -0.3, 0.9, 0.0]]])
    images = TOKENIZER.encode(actions, cameras, size)
    expected = cameras.project(tool_points(actions.double(), 0.1)[:, None].expand(1, 2, 1, 3, 3), size).pixels
    red = images[:, :, 0].double()
    centres = torch.arange(128) + 0.5
    x = (red.sum(-2) * centres).sum(-1) / red.sum((-1, -2))
    y = (red.sum(-1) * centres).sum(-1) / red.sum((-1, -2))
    assert torch.allclose(torch.stack([x, y], -1), expected[:, :, :, 0], atol=1e-3)


def test_points_are_named_by_tool_axes():
    actions = trajectory(4, 1)
    rotation = rotation_from_quaternion(actions[..., 3:7])
    points = tool_points(actions, 0.2)
    assert torch.allclose(points[..., 0, :], actions[..., :3])
    assert torch.allclose(points[..., 1, :] - points[..., 0, :], 0.2 * rotation[..., 0], atol=1e-6)
    assert torch.allclose(points[..., 0, :] - points[..., 2, :], 0.2 * rotation[..., 2], atol=1e-6)


def test_openness_is_the_blue_background():
    actions = trajectory(5, 0)
    actions[0, :, 7] = torch.tensor([0.0, 0.25, 0.5, 0.8, 1.0])
    images = TOKENIZER.encode(actions, rig(EYES[:2], 5, 64), (64, 64))
    assert torch.allclose(images[0, :, 2].flatten(-2).median(-1).values, 0.25 * actions[0, :, 7].expand(2, 5))
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (256, 256)])  # the second one lies in huge pages
def test_out_is_filled_and_returned(size):
    cameras, actions = rig(EYES[:2], 5, size[0]), trajectory(5, 0)
    fresh = TOKENIZER.encode(actions, cameras, size)
    out = torch.full_like(fresh, torch.nan)
    assert TOKENIZER.encode(actions, cameras, size, out) is out
    assert torch.equal(out, fresh)
    view = torch.full((1, 2, 3, 7, *size), torch.nan)[:, :, :, 1:6]
    assert torch.equal(TOKENIZER.encode(actions, cameras, size, view), fresh)


def test_a_point_behind_the_camera_is_not_drawn():
    cameras = rig(EYES[:2], 1, 64)
    eye = cameras.world_from_camera[0, 0, 0, :3, 3]
    actions = torch.tensor([[[0.0, 0, 0, 0, 0, 0, 1, 1]]])
    actions[0, 0, :3] = 1.5 * eye
    images = TOKENIZER.encode(actions, cameras, (64, 64))
    assert images[0, 0, :2].max() == 0
    assert torch.all(images[0, 0, 2] == 0.25)


def test_steps_without_an_action_are_black():
    actions = trajectory(3, 0)
    actions[0, 1] = 0
    images = TOKENIZER.encode(actions, rig(EYES[:2], 3, 64), (64, 64))
    assert images[:, :, :, 1].max() == 0
    assert images[:, :, :2, 0].amax((-1, -2)).min() > 0.9


def test_a_camera_that_is_not_finite_draws_nothing():
    cameras = rig(EYES[:2], 2, 64)
    broken = Cameras(
        cameras.intrinsics.clone().index_fill_(1, torch.tensor(1), torch.nan), cameras.world_from_camera
    )
    images = TOKENIZER.encode(trajectory(2, 0), broken, (64, 64))
    assert images[:, 1, :2].max() == 0
    assert torch.equal(images[:, 0], TOKENIZER.encode(trajectory(2, 0), cameras, (64, 64))[:, 0])


def test_autocast_changes_nothing():
    cameras, actions = rig(EYES[:2], 3, 64), trajectory(3, 0)
    plain = TOKENIZER.encode(actions, cameras, (64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(TOKENIZER.encode(actions, cameras, (64, 64)), plain)


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(-30, 94), y=st.floats(-30, 94), std=st.floats(0.01, 0.2), openness=st.floats(0, 1)
)  # centres inside and outside of the image
def test_the_pedestal_window_covers_the_disc(x, y, std, openness):
    cameras = Cameras(torch.eye(3).reshape(1, 1, 1, 3, 3), torch.eye(4).reshape(1, 1, 1, 4, 4))
    actions = torch.tensor([[[x, y, 2.0, 0, 0, 0, 1, openness]]])
    actions[..., :2] *= 2  # depth
    tokenizer = ActionImageTokenizer(blob_std=std, axis_length=1.0)
    blue = tokenizer.encode(actions, cameras, (64, 64))[0, 0, 2, 0]
    grid = torch.arange(64, dtype=torch.float64) + 0.5
    centre = torch.tensor([x, y]).double() * 2 / 1.0  # the third point lies a metre nearer: depth 1
    square = (grid - centre[0]) ** 2 + (grid[:, None] - centre[1]) ** 2
    blob = torch.exp(-square / (2 * (64 * std) ** 2))
    expected = torch.where(blob <= 0.25, 0.25 * openness, blob)
    assert torch.allclose(blue.double(), expected, atol=2e-4) or ((blob - 0.25).abs() < 1e-4).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, c, o: (a[:, :2], c, None), r"\[b, t, 8\]"),
        (lambda a, c, o: (a, c[:, 0], None), r"\[b, v, t\]"),
        (lambda a, c, o: (a, c, o[:, :1]), r"out must be float32"),
        (lambda a, c, o: (a, c, o.double()), r"torch.float64"),
        (lambda a, c, o: (a.index_fill(1, torch.tensor(1), torch.nan), c, o), r"actions\[0, 1, 0\] is nan"),
    ],
)
def test_bad_arguments_are_named(change, message):
    actions, cameras, out = trajectory(3, 0), rig(EYES[:2], 3, 32), torch.empty(1, 2, 3, 3, 32, 32)
    actions, cameras, out = change(actions, cameras, out)
    with pytest.raises(ValueError, match=message):
        TOKENIZER.encode(actions, cameras, (32, 32), out)


@pytest.mark.parametrize("field", ["blob_std", "axis_length", "max_position_std", "max_disagreement"])
def test_settings_that_cannot_work_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be > 0, got 0"):
        ActionImageTokenizer(**{field: 0.0})
