"""Cameras of the tabletop suite: calibration against pixels, framing, RLBench's golden front camera."""

import numpy as np
import pytest
import torch

from ai_wam.cameras import Cameras
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop import camera_rigs as rigs
from benchmarks.simulators.tabletop.robot_tasks.reach_target import RADIUS
from benchmarks.simulators.tabletop.simulator import Tabletop

AXIS = 0.1  # metres from the tip to the other points of an action image
GOLDEN_FRONT = np.array(
    [[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1]]
)


def camera_of(view):
    return Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))


def project(view, points):
    projection = camera_of(view).project(torch.from_numpy(np.atleast_2d(points)), view.image.shape[:2])
    return projection.pixels.numpy(), projection.depth.numpy(), projection.visible.numpy()


def red_disc(image):
    """Mean pixel (x, y) and number of strongly red pixels."""
    red = image.astype(int)
    rows, columns = np.nonzero((red[..., 0] > 150) & (red[..., 1] < 90) & (red[..., 2] < 90))
    return np.array([columns.mean(), rows.mean()]) + 0.5 if len(rows) else np.zeros(2), len(rows)


def test_front_camera_of_the_wide_rig_is_rlbench_golden_one():
    simulator = Tabletop(rig="wide", image_size=(128, 128))
    simulator.reset(Trial("reach_target", 0, 0))
    view = simulator.observe(["front"]).views["front"]
    simulator.close()
    intrinsics, extrinsics = camera_of(view).to_rlbench()
    np.testing.assert_allclose(extrinsics.numpy(), GOLDEN_FRONT, atol=1e-5)
    focal = -175.83856040078922
    np.testing.assert_allclose(intrinsics.numpy(), [[focal, 0, 64], [0, focal, 64], [0, 0, 1]], atol=1e-4)


@pytest.mark.parametrize("rig", rigs.RIGS)
def test_projection_falls_on_the_sphere_that_is_drawn(rig):
    simulator = Tabletop(rig=rig, image_size=(128, 128))
    errors = {name: [] for name in rigs.VIEWS}
    for index in range(12):
        simulator.reset(Trial("reach_target", 0, index))
        centre = list(simulator.demonstrate())[-1][:3]
        for name, view in simulator.observe().views.items():
            pixel, depth, _ = project(view, centre)
            found, area = red_disc(view.image)
            whole = np.pi * (view.intrinsics[0, 0] * RADIUS / depth[0]) ** 2
            if abs(area / whole - 1) < 0.15:  # else hidden in part, or cut off by the picture's edge
                errors[name].append(np.abs(pixel[0] - found).max())
    simulator.close()
    assert {name: len(values) >= 3 for name, values in errors.items()} == dict.fromkeys(rigs.VIEWS, True)
    worst = {name: float(max(values)) for name, values in errors.items()}
    assert max(worst.values()) < 0.6, worst


def test_wrist_camera_moves_with_the_hand():
    simulator = Tabletop(image_size=(16, 16), views=("wrist", "front"))
    simulator.reset(Trial("reach_target", 0, 0))
    before = simulator.observe()
    for _, action in zip(range(20), simulator.demonstrate(), strict=False):
        simulator.step(action)
    after = simulator.observe()
    simulator.close()
    moved = after.action[:3] - before.action[:3]
    camera = [frame.views["wrist"].world_from_camera[:3, 3] for frame in (before, after)]
    np.testing.assert_allclose(camera[1] - camera[0], moved, atol=0.02)
    assert np.linalg.norm(moved) > 0.1
    front = [frame.views["front"].world_from_camera for frame in (before, after)]
    np.testing.assert_array_equal(front[0], front[1])


@pytest.mark.parametrize("workspace", list(rigs.WORKSPACES))
def test_framed_rig_shows_every_point_of_an_action_image(workspace):
    simulator = Tabletop(rig="framed", workspace=workspace, image_size=(64, 64))
    simulator.reset(Trial("reach_target", 0, 0))
    home = simulator.pose()[:3]
    box = rigs.WORKSPACES[workspace]
    axes = [np.linspace(low, high, 5) for low, high in zip(box.low, box.high, strict=True)]
    tips = np.concatenate([np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3), home[None]])
    x_axis = np.array([-0.9848, 0, -0.1735])  # both of the home orientation
    z_axis = np.array([0.1735, 0, -0.9848])
    points = np.concatenate([tips, tips + AXIS * x_axis, tips - AXIS * z_axis])
    for name, view in simulator.observe(rigs.VIEWS[:4]).views.items():
        pixels, _, visible = project(view, points)
        assert visible.all(), name
        assert pixels.min() > 0.5, name
        assert pixels.max() < 63.5, name
    simulator.close()


def test_framed_spheres_are_at_least_five_pixels_across():
    simulator = Tabletop(rig="framed", image_size=(64, 64))
    simulator.reset(Trial("reach_target", 0, 0))
    for name, view in simulator.observe(["front", "left_shoulder"]).views.items():
        _, depth, _ = project(view, rigs.WORKSPACES["framed"].corners)
        across = view.intrinsics[0, 0] * 2 * RADIUS / depth
        assert across.min() >= 5.0, (name, across)
    simulator.close()


def test_workspaces_are_as_large_as_promised():
    assert (np.array(rigs.WORKSPACES["framed"].extent) >= (0.27, 0.44, 0.28)).all()
    assert (np.array(rigs.WORKSPACES["wide"].extent) >= (0.33, 0.56, 0.45)).all()


def test_unknown_rig_is_refused():
    with pytest.raises(ValueError, match=r"'tight'.*wide"):
        rigs.mounts("tight", rigs.WORKSPACES["wide"])
