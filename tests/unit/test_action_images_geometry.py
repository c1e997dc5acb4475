"""Rotations, the frame of three points, the derivatives of the pose fit, and bridging in time."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from ai_wam.action_images.blob_drawing import draw_blobs, draw_blobs_on_pedestal
from ai_wam.action_images.blob_finding import find_blobs
from ai_wam.action_images.pose_fit import Poses, evaluate, frame_from_points, make_scene, refine
from ai_wam.action_images.pose_sequences import bracket
from ai_wam.poses import (
    continuous_quaternions,
    geodesic_angle,
    rotation_from_quaternion,
    rotation_from_vector,
    slerp,
)
from benchmarks.speed.codec_rig import EYES, rig

OFFSETS = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0, -0.1]], dtype=torch.float64)


def random_rotations(count, seed):
    return torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix())


@given(st.integers(0, 1000), st.floats(0, 3.1))
def test_rotation_vectors_agree_with_scipy(seed, angle):
    axis = np.random.default_rng(seed).normal(size=3)
    vector = angle * axis / np.linalg.norm(axis)
    expected = torch.from_numpy(Rotation.from_rotvec(vector).as_matrix())
    assert torch.allclose(rotation_from_vector(torch.from_numpy(vector)), expected, atol=1e-12)


@given(st.integers(0, 1000), st.floats(0, 1), st.booleans())
def test_slerp_agrees_with_scipy(seed, fraction, other_sign):
    ends = Rotation.random(2, random_state=seed)
    a, b = torch.from_numpy(ends.as_quat())
    mixed = slerp(a, -b if other_sign else b, torch.tensor(fraction, dtype=torch.float64))
    expected = torch.from_numpy(Slerp([0, 1], ends)(fraction).as_matrix())
    assert mixed.norm().sub(1).abs() < 1e-9
    assert geodesic_angle(rotation_from_quaternion(mixed), expected) < 1e-6


def test_slerp_of_equal_ends_stays():
    q = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert torch.allclose(slerp(q, q, torch.tensor(0.3)), q)


def turning(start=0.3, turns=1.2, steps=41):
    """Half angles of a tool that points down and turns about z: the numbers follow one smooth curve."""
    half = (start + torch.linspace(0, 2 * np.pi * turns, steps)) / 2
    none = torch.zeros_like(half)
    return torch.stack([none, none, half.sin(), half.cos()], dim=-1)


@given(st.integers(0, 1000))
def test_signs_follow_the_motion_past_frames_without_a_pose(seed):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.stack([turning(), turning(start=-0.4, turns=2.0)])
    mixed = smooth * (torch.randint(0, 2, (2, 41, 1), generator=generator) * 2 - 1)
    missing = torch.rand(2, 41, generator=generator) < 0.3
    missing[:, ::5] = False  # in a longer gap the tool may turn so far that both signs are equally near
    mixed[missing] = 0
    mixed[1][missing[1]] = torch.nan
    found = continuous_quaternions(mixed)
    assert torch.equal(found[missing].nan_to_num(), torch.zeros(int(missing.sum()), 4))
    for row in range(2):
        known = ~missing[row]
        sign = 1 if smooth[row][known][0, 3] >= 0 else -1
        assert torch.equal(found[row][known], sign * smooth[row][known])


def test_signs_of_nothing():
    assert continuous_quaternions(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
    assert torch.equal(continuous_quaternions(torch.tensor([[0.0, 0, 1, 0]])), torch.tensor([[0.0, 0, 1, 0]]))


def test_frame_of_three_points_is_exact_and_shares_errors():
    rotation = random_rotations(20, 0)
    assert torch.allclose(frame_from_points(OFFSETS @ rotation.mT + 1.0), rotation, atol=1e-12)
    bent = OFFSETS.clone()
    bent[1] = 0.3 * torch.tensor(
        [np.cos(0.2), 0, -np.sin(0.2)]
    )  # x axis turned by 0.2 towards -z, and too long
    angle = geodesic_angle(frame_from_points(bent), torch.eye(3, dtype=torch.float64))
    assert abs(float(angle) - 0.1) < 1e-9


def random_scene(count=6, views=3, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cameras = rig(EYES[:views], count, 128)[0].map(lambda m: m.movedim(0, 1))
    truth = Poses(random_rotations(count, seed), 0.2 * torch.randn(count, 3, generator=generator).double())
    points = truth.position[:, None] + OFFSETS @ truth.rotation.mT
    pixels = cameras.project(points[:, None].expand(count, views, 3, 3), (128, 128)).pixels
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator).double()
    spread = torch.randn(count, views, 3, 2, 2, generator=generator).double()
    information = spread @ spread.mT + torch.eye(2)
    return make_scene(cameras, pixels, information, torch.ones(count, views, 3).bool(), OFFSETS), truth


def test_gradient_is_that_of_the_cost():
    scene, truth = random_scene(noise=2.0)
    weight = torch.rand(6, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    for cauchy in (None, 3.0):
        gradient = evaluate(scene, truth, weight, cauchy).gradient
        for axis in range(6):
            step = torch.zeros(6, 3, dtype=torch.float64)
            step[:, axis % 3] = 1e-6
            costs = []
            for sign in (1, -1):
                turn = rotation_from_vector(sign * step) @ truth.rotation
                moved = Poses(truth.rotation, truth.position + sign * step)
                costs.append(
                    evaluate(scene, moved if axis < 3 else Poses(turn, truth.position), weight, cauchy).cost
                )
            slope = (costs[0] - costs[1]) / 2e-6
            assert torch.allclose(-2 * gradient[:, axis], slope, rtol=1e-4, atol=1e-3)


def test_refinement_finds_the_pose_from_afar():
    scene, truth = random_scene()
    turned = rotation_from_vector(torch.full((6, 3), 0.3, dtype=torch.float64)) @ truth.rotation
    start = Poses(turned, truth.position + 0.05)
    fit = refine(scene, start, torch.ones(6, 3, 3).double(), iterations=12)
    assert (fit.poses.position - truth.position).abs().max() < 1e-9
    assert geodesic_angle(fit.poses.rotation, truth.rotation).max() < 1e-7


def test_refinement_never_makes_it_worse():
    scene, truth = random_scene(noise=3.0)
    weight = torch.ones(6, 3, 3).double()
    start = Poses(random_rotations(6, 9), truth.position + 0.3)
    before = evaluate(scene, start, weight).cost
    assert (refine(scene, start, weight, iterations=1).cost <= before).all()


def test_bracket():
    valid = torch.tensor([[False, True, False, False, True], [False] * 5, [True] * 5])
    before, after, fraction = bracket(valid)
    assert before[0].tolist() == [1, 1, 1, 1, 4]
    assert after[0].tolist() == [1, 1, 4, 4, 4]
    assert before[1].min() >= 0
    assert after[1].max() < 5
    assert before[2].tolist() == after[2].tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(fraction[0], torch.tensor([0, 0, 1 / 3, 2 / 3, 0], dtype=torch.float64))
    assert fraction[2].sum() == 0


def test_blobs_and_their_precision():
    count, size, std = 200, 64, 3.2
    generator = torch.Generator().manual_seed(0)
    centres = 8 + 48 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    images, on_pedestal = torch.empty(2 * count, size, size), torch.arange(2 * count) >= count
    draw_blobs(centres, std, 0.5, images[:count])
    draw_blobs_on_pedestal(centres, 0.25 * torch.rand(count, generator=generator), std, 0.5, images[count:])
    images += 0.1 * torch.randn(images.shape, generator=generator)
    found = find_blobs(images, on_pedestal, std, 0.5, 0.1)
    error = found.pixels - centres.repeat(2, 1)
    assert found.seen.all()
    bounds = torch.tensor([0.0798, 0.0913])  # white noise: independent of the blob's width
    assert (error.square().mean(1).unflatten(0, (2, -1)).mean(1).sqrt() < 1.1 * bounds).all()
    score = (error[:, None] @ found.information @ error[..., None]).flatten() / 2
    assert 0.8 < score.mean() < 1.25
    assert (found.amplitude - 1).abs().mean() < 0.1
