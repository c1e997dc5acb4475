"""Cameras moved around a workspace; what the tabletop suite makes of it is tested in test_shifts.py."""

import math

import numpy as np
import pytest

from benchmarks.shifts.parts import CameraShift
from benchmarks.simulators.camera_moves import (
    Mount,
    Workspace,
    about,
    check_moves,
    elevation,
    framed_points,
    moved,
)
from benchmarks.simulators.tabletop.mujoco_graphics import mujoco

BOX = Workspace((0.0, -0.4, 0.75), (0.5, 0.4, 1.45))
ABOVE = Mount((0.25, 0.0, 2.6), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0), 60.0)  # in the zenith, looking down
STILL = {"azimuth": 0.0, "elevation": 0.0, "distance": 1.0, "fov": 1.0, "roll": 0.0}


def test_rotations_are_mujocos():
    rng = np.random.default_rng(0)
    for _ in range(50):
        axis, angle = rng.normal(size=3), rng.uniform(-7, 7)
        axis /= np.linalg.norm(axis)
        quaternion, matrix = np.empty(4), np.empty(9)
        mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
        mujoco.mju_quat2Mat(matrix, quaternion)
        np.testing.assert_allclose(about(axis, angle), matrix.reshape(3, 3), rtol=0, atol=1e-15)


@pytest.mark.parametrize("framed", [True, False])
def test_a_camera_in_the_zenith_turns_its_picture(framed):
    turned = moved(ABOVE, STILL | {"azimuth": 90.0}, BOX, framed)
    np.testing.assert_allclose(turned.position, ABOVE.position, atol=1e-12)
    np.testing.assert_allclose(turned.up, [0, 1, 0], atol=0.1 if framed else 1e-12)
    axes = np.stack([turned.right, turned.up])
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
    assert elevation(turned, BOX) == pytest.approx(90)
    near = moved(ABOVE, STILL | {"distance": 0.8}, BOX, framed)
    np.testing.assert_allclose(near.position, [0.25, 0, 1.1 + 0.8 * 1.5], atol=1e-12)


def test_a_framed_camera_in_the_zenith_shows_everything():
    camera = moved(ABOVE, STILL | {"azimuth": 30.0}, BOX, True)
    axes = np.stack([camera.right, camera.up, np.cross(camera.right, camera.up)], axis=1)
    local = (framed_points(BOX) - np.array(camera.position)) @ axes
    seen = np.abs(local[:, :2] / -local[:, 2:]).max()
    assert 0.85 < seen / math.tan(math.radians(camera.fov) / 2) <= 1


def test_a_camera_in_the_zenith_cannot_be_raised():
    with pytest.raises(ValueError, match=r"'overhead' from 90 .* to 90 to 95; it must stay in \[0, 85\]"):
        check_moves(CameraShift(elevation=(0, 5)), {"overhead": ABOVE}, BOX, 140.0)
    check_moves(CameraShift(azimuth=(0, 90)), {"overhead": ABOVE}, BOX, 140.0)


def test_a_camera_among_what_it_must_show_is_refused():
    with pytest.raises(ValueError, match=r"a camera at \(0\.25, 0\.00, 1\.40\) m stands in the workspace"):
        moved(ABOVE, STILL | {"distance": 0.2}, BOX, True)
    assert moved(ABOVE, STILL | {"distance": 0.2}, BOX, False).position[2] == pytest.approx(1.4)
