import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from benchmarks.evaluation.controller import commands, control_steps, hold_invalid, slerp

HOME = np.array([0.3, 0.0, 1.4, 0.0, 1.0, 0.0, 0.0, 1.0])


def trajectory(count, seed=0):
    rng = np.random.default_rng(seed)
    quaternions = Rotation.random(count, random_state=seed).as_quat()
    return np.concatenate([rng.normal(size=(count, 3)), quaternions, rng.uniform(size=(count, 1))], axis=1)


@settings(max_examples=30)
@given(st.sampled_from([1, 3, 4, 7]), st.sampled_from([10.0, 20.0, 30.0, 33.3]), st.integers(1, 6))
def test_an_action_is_commanded_exactly_at_its_time(stride, hz, count):
    actions = trajectory(count)
    poses, target = commands(HOME, actions, stride / hz, hz, stride * count + 5)
    at_actions = poses[stride - 1 : stride * count : stride]
    np.testing.assert_allclose(at_actions[:, [0, 1, 2, 7]], actions[:, [0, 1, 2, 7]], atol=1e-12)
    np.testing.assert_allclose(np.abs((at_actions[:, 3:7] * actions[:, 3:7]).sum(1)), 1, atol=1e-12)
    expected = np.minimum(np.arange(stride * count + 5) // stride, count - 1)
    np.testing.assert_array_equal(target, expected)


def test_command_j_is_the_pose_at_time_j_plus_one():
    actions = trajectory(3)
    dt, hz = 0.17, 20.0  # no whole number of control steps: actions fall between commands
    poses, _ = commands(HOME, actions, dt, hz, 12)
    times = np.arange(1, 13) / hz
    knots, knot_times = np.concatenate([HOME[None], actions]), dt * np.arange(4)
    for column in (0, 1, 2, 7):
        expected = np.interp(times, knot_times, knots[:, column])  # np.interp holds the last value, as we do
        np.testing.assert_allclose(poses[:, column], expected, atol=1e-12)
    reference = Slerp(knot_times, Rotation.from_quat(knots[:, 3:7]))(np.minimum(times, knot_times[-1]))
    turned = (Rotation.from_quat(poses[:, 3:7]) * reference.inv()).magnitude()
    assert turned.max() < 1e-7


def test_the_last_pose_is_held():
    actions = trajectory(2)
    poses, target = commands(HOME, actions, 0.2, 20.0, 40)
    np.testing.assert_allclose(poses[8:, :3], np.repeat(actions[-1:, :3], 32, axis=0))
    assert (target[8:] == 1).all()


def test_slerp_takes_the_short_way_and_survives_equal_rotations():
    q = Rotation.from_euler("z", [[10.0], [10.0]], degrees=True).as_quat()
    other = Rotation.from_euler("z", [[50.0], [10.0]], degrees=True).as_quat()
    half = slerp(q, -other, np.full((2, 1), 0.5))
    angles = Rotation.from_quat(half).as_euler("xyz", degrees=True)[:, 2]
    np.testing.assert_allclose(angles, [30.0, 10.0], atol=1e-9)


def test_number_of_control_steps():
    assert control_steps(4, 0.2, 20.0) == 16
    assert control_steps(3, 0.1, 30.0) == 9  # 3 * 0.1 * 30 is 9.000000000000002 or 8.99...
    assert control_steps(1, 0.17, 20.0) == 3
    assert control_steps(1, 0.01, 20.0) == 1


def test_invalid_actions_hold_the_last_valid_pose():
    actions = trajectory(5)
    valid = np.array([False, True, False, False, True])
    held, good = hold_invalid(HOME, actions, valid)
    np.testing.assert_array_equal(good, valid)
    np.testing.assert_allclose(held, np.stack([HOME, actions[1], actions[1], actions[1], actions[4]]))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_never_commanded(broken):
    actions = trajectory(3)
    actions[1, 2] = broken
    actions[2, 3:7] = 0
    held, good = hold_invalid(HOME, actions, np.ones(3, dtype=bool))
    np.testing.assert_array_equal(good, [True, False, False])
    assert np.isfinite(held).all()
    np.testing.assert_allclose(held[1:], np.repeat(actions[:1], 2, axis=0))


def test_actions_are_normalised():
    actions = trajectory(1)
    actions[0, 3:7] *= 3
    actions[0, 7] = 1.2
    held, _ = hold_invalid(HOME, actions, np.ones(1, dtype=bool))
    assert np.linalg.norm(held[0, 3:7]) == pytest.approx(1)
    assert held[0, 7] == 1
