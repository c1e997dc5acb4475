"""Pinhole cameras: golden values, inverse pairs, and what bad matrices get."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ai_wam.cameras import Cameras, CropResize
from ai_wam.poses import geodesic_angle, quaternion_from_rotation, rotation_from_quaternion

# RLBench's front camera at 128 pixels, from public recordings.
FRONT_FOCAL = -175.83856040078922
FRONT_K = torch.tensor([[FRONT_FOCAL, 0, 64], [0, FRONT_FOCAL, 64], [0, 0, 1]], dtype=torch.float64)
FRONT_E = torch.tensor(
    [[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1]],
    dtype=torch.float64,
)


def random_cameras(seed: int, *shape: int, sign: float = 1.0) -> Cameras:
    g = torch.Generator().manual_seed(seed)
    quaternion = torch.randn(*shape, 4, generator=g, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(*shape, 1, 1)
    pose[..., :3, :3] = rotation_from_quaternion(quaternion)
    pose[..., :3, 3] = torch.randn(*shape, 3, generator=g, dtype=torch.float64)
    k = torch.eye(3, dtype=torch.float64).repeat(*shape, 1, 1)
    k[..., 0, 0] = sign * (80 + 40 * torch.rand(*shape, generator=g, dtype=torch.float64))
    k[..., 1, 1] = sign * (80 + 40 * torch.rand(*shape, generator=g, dtype=torch.float64))
    k[..., 0, 1] = torch.randn(*shape, generator=g, dtype=torch.float64)
    k[..., 0, 2], k[..., 1, 2] = 61.0, 47.0
    return Cameras(k, pose)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, -1.0]))
def test_project_inverts_unproject(seed: int, sign: float):
    cameras = random_cameras(seed, 2, 3, sign=sign)
    g = torch.Generator().manual_seed(seed)
    pixels = 128 * torch.rand(2, 3, 7, 2, generator=g, dtype=torch.float64)
    depth = 0.2 + 3 * torch.rand(2, 3, 7, generator=g, dtype=torch.float64)
    projection = cameras.project(cameras.unproject(pixels, depth), (96, 128))
    torch.testing.assert_close(projection.pixels, pixels, atol=1e-9, rtol=0)
    torch.testing.assert_close(projection.depth, depth, atol=1e-12, rtol=0)
    assert torch.equal(projection.visible, pixels[..., 1] < 96)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, -1.0]))
def test_rays_pass_through_what_their_pixel_shows(seed: int, sign: float):
    cameras = random_cameras(seed, 2, sign=sign)
    origin, direction = cameras.rays((6, 8), (3, 4))
    points = origin[:, None, None] + 1.7 * direction
    projection = cameras.project(points.flatten(1, 2), (6, 8))
    x, y = torch.meshgrid(torch.arange(4) * 2 + 1.0, torch.arange(3) * 2 + 1.0, indexing="xy")
    wanted = torch.stack([x, y], dim=-1).flatten(0, 1).double().expand(2, -1, -1)
    torch.testing.assert_close(projection.pixels, wanted, atol=1e-9, rtol=0)
    assert (projection.depth > 0).all()
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(2, 3, 4, dtype=torch.float64))


def test_plucker_moment_does_not_depend_on_the_point_of_the_ray():
    cameras = random_cameras(3, 1)
    origin, direction = cameras.rays((4, 4))
    plucker = cameras.plucker((4, 4))
    elsewhere = origin[:, None, None] + 2.5 * direction
    torch.testing.assert_close(plucker[..., 3:], torch.linalg.cross(elsewhere, direction), atol=1e-12, rtol=0)


def test_relative_to_keeps_pixels():
    cameras, points = random_cameras(4, 2), torch.randn(2, 5, 3, dtype=torch.float64)
    reference = random_cameras(5, 1).world_from_camera
    moved = cameras.relative_to(reference)
    local = (points - reference[..., None, :3, 3]) @ reference[..., :3, :3]
    torch.testing.assert_close(moved.project(local, (9, 9)).pixels, cameras.project(points, (9, 9)).pixels)
    identity = cameras.relative_to(cameras.world_from_camera).world_from_camera
    torch.testing.assert_close(identity, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))


def test_rlbench_front_camera():
    """The golden front camera, converted, sees the table's middle in the middle of the picture."""
    cameras = Cameras.from_rlbench(FRONT_K, FRONT_E)
    assert float(cameras.intrinsics[0, 0]) == pytest.approx(-FRONT_FOCAL)
    assert float(cameras.intrinsics[0, 0]) == pytest.approx(64 / math.tan(math.radians(20)))
    axis = cameras.unproject(
        torch.tensor([[64.0, 64.0]], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64)
    )
    torch.testing.assert_close(
        axis[0], torch.tensor([1.35 - 1.5 * 0.90631, 0, 1.58 - 1.5 * 0.42262], dtype=torch.float64)
    )
    # +y of the world is to the left of a camera that looks along -x; +z is up.
    world = torch.tensor([[0.2, 0.0, 0.9], [0.2, 0.1, 0.9], [0.2, 0.0, 1.0]], dtype=torch.float64)
    pixels = cameras.project(world, (128, 128)).pixels
    assert pixels[1, 0] > pixels[0, 0]
    assert pixels[2, 1] < pixels[0, 1]
    raw = Cameras(FRONT_K, FRONT_E).project(world, (128, 128))
    torch.testing.assert_close(raw.pixels, pixels)
    torch.testing.assert_close(raw.depth, cameras.project(world, (128, 128)).depth)
    k, e = cameras.to_rlbench()
    assert torch.equal(k, FRONT_K)
    assert torch.equal(e, FRONT_E)


def test_opengl_round_trip():
    """An OpenGL camera at the origin looks along -z with +y up."""
    k = torch.tensor([[100.0, 0, 32], [0, 100.0, 32], [0, 0, 1]])
    cameras = Cameras.from_opengl(k, torch.eye(4))
    pixels, depth, visible = cameras.project(torch.tensor([[0.1, 0.2, -2.0], [0, 0, 2.0]]), (64, 64))
    torch.testing.assert_close(pixels[0], torch.tensor([32 + 5.0, 32 - 10.0]))
    torch.testing.assert_close(depth, torch.tensor([2.0, -2.0]))
    assert visible.tolist() == [True, False]
    assert torch.equal(cameras.to_opengl()[1], torch.eye(4))


@pytest.mark.parametrize(
    ("source", "target"),
    [((96, 128), (64, 64)), ((128, 128), (64, 64)), ((90, 160), (48, 80)), ((64, 64), (64, 64))],
)
def test_crop_and_resize_moves_pixels_and_cameras_alike(source: tuple[int, int], target: tuple[int, int]):
    """A bright spot, moved by `images`, is where the cameras from `cameras` project its point."""
    fit = CropResize(source, target)
    k = torch.tensor([[150.0, 0, source[1] / 2], [0, 150.0, source[0] / 2], [0, 0, 1]])
    cameras = Cameras(k, torch.eye(4))
    point = torch.tensor([[0.11, -0.07, 1.0]])
    spot = cameras.project(point, source).pixels[0]
    y, x = torch.meshgrid(torch.arange(source[0]) + 0.5, torch.arange(source[1]) + 0.5, indexing="ij")
    image = torch.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * 4.0**2))
    moved = fit.images(image[None])[0]
    assert moved.shape == target
    y, x = torch.meshgrid(torch.arange(target[0]) + 0.5, torch.arange(target[1]) + 0.5, indexing="ij")
    found = torch.stack([(moved * x).sum(), (moved * y).sum()]) / moved.sum()
    torch.testing.assert_close(
        found, fit.cameras(cameras).project(point, target).pixels[0], atol=0.05, rtol=0
    )


def test_autocast_changes_nothing():
    def results() -> list[torch.Tensor]:
        cameras = random_cameras(1, 3).to(torch.float32)  # autocast leaves float64 alone
        points = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(1))
        seen = cameras.project(points, (64, 64))
        moved = cameras.relative_to(cameras.world_from_camera[:1])
        return [
            *seen[:2],
            cameras.unproject(*seen[:2]),
            cameras.plucker((64, 64), (4, 4)),
            moved.world_from_camera,
        ]

    plain = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, results(), strict=True))


def test_crop_refuses_other_images():
    with pytest.raises(ValueError, match=r"\(5, 5\) pixels \(h, w\), expected \(4, 4\)"):
        CropResize((4, 4), (2, 2)).images(torch.zeros(5, 5))


def test_arrays_are_no_cameras():
    cameras = object.__new__(Cameras)  # the tests' check of types would refuse them first
    vars(cameras).update(intrinsics=np.eye(3), world_from_camera=np.eye(4))
    with pytest.raises(TypeError, match=r"intrinsics must be a tensor \(torch.as_tensor\), got a ndarray"):
        cameras.__post_init__()


def test_bad_matrices_are_refused_with_their_place():
    pose = torch.eye(4).repeat(2, 3, 1, 1)
    k = torch.eye(3).repeat(2, 3, 1, 1)
    scaled = pose.clone()
    scaled[1, 2, :3, :3] *= 1.1
    with pytest.raises(ValueError, match=r"world_from_camera\[1, 2\] is no rigid motion"):
        Cameras(k, scaled)
    mirrored = pose.clone()
    mirrored[0, 0, 0, 0] = -1
    with pytest.raises(ValueError, match="no rigid motion"):
        Cameras(k, mirrored)
    tilted = pose.clone()
    tilted[1, 0, 3, 0] = 1
    with pytest.raises(ValueError, match=r"world_from_camera\[1, 0\] is no rigid motion"):
        Cameras(k, tilted)
    with pytest.raises(ValueError, match="float32 or float64"):
        Cameras(k.half(), pose)
    Cameras(k, torch.full_like(pose, torch.inf))  # lost ones, without a warning
    lost = pose.clone()
    lost[0, 1] = torch.nan
    projection = Cameras(k, lost).project(torch.tensor([0.0, 0, 1]).expand(2, 3, 1, 3), (4, 4))
    assert not projection.visible[0, 1].any()
    assert projection.visible[1].all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100_000))
def test_quaternions_agree_with_scipy(seed: int):
    quaternion = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = rotation_from_quaternion(quaternion)
    reference = torch.from_numpy(Rotation.from_quat(quaternion.numpy()).as_matrix())
    torch.testing.assert_close(rotation, reference)
    back = quaternion_from_rotation(rotation)
    torch.testing.assert_close(rotation_from_quaternion(back), rotation)
    assert (back[:, 3] >= 0).all()


@pytest.mark.parametrize("axis", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
def test_half_turns_have_a_quaternion(axis: list[float]):
    rotation = torch.from_numpy(Rotation.from_rotvec(math.pi * torch.tensor(axis).numpy()).as_matrix())
    torch.testing.assert_close(rotation_from_quaternion(quaternion_from_rotation(rotation)), rotation)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 3.0, math.pi])
def test_geodesic_angle(angle: float):
    a = torch.from_numpy(Rotation.from_euler("xyz", [0.3, -0.2, 0.9]).as_matrix())
    b = a @ torch.from_numpy(Rotation.from_rotvec([0, angle * 0.6, angle * 0.8]).as_matrix())
    assert float(geodesic_angle(a, b)) == pytest.approx(angle, abs=1e-7)
