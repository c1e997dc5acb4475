"""Shifted scenes of RLBench through its real server process, over the in-repo double of its names."""

import math

import numpy as np
import pytest
import torch
from rlbench_twin import TRIAL, make

from ai_wam.cameras import Cameras
from ai_wam.types import Clip
from benchmarks.demonstrations import Demonstrations
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import HoldStill
from benchmarks.shifts import Shift, ShiftedSimulator, parts
from benchmarks.simulator import Trial
from benchmarks.simulators.camera_moves import Mount, framed_points, moved
from benchmarks.simulators.rlbench.simulator import RLBench

FIXED = ("front", "left_shoulder", "right_shoulder", "overhead")
SIDES = FIXED[:3]
BACKGROUND = 40
TURNED = parts.CameraShift((20, 60), (-5, 5), (0.8, 1.2), (0.9, 1.1), (-20, 20), framed=False, views=SIDES)


@pytest.fixture(scope="module")
def simulator(rlbench_simulator):
    return rlbench_simulator


def shifted(simulator: RLBench, **given) -> ShiftedSimulator:
    return ShiftedSimulator(simulator, Shift(**given))


def seen(simulator, trial=TRIAL):
    simulator.reset(trial)
    return dict(simulator.observe(FIXED).views)


def ours(view) -> Cameras:
    return Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))


def as_mount(view) -> Mount:
    """From the reported calibration: OpenCV's axes, and the field of view of the middle square."""
    pose, half = view.world_from_camera, min(view.image.shape[:2]) / 2
    fov = math.degrees(2 * math.atan(half / view.intrinsics[0, 0]))
    right, up = pose[:3, 0], -pose[:3, 1]
    return Mount(tuple(pose[:3, 3].tolist()), tuple(right.tolist()), tuple(up.tolist()), fov)


@pytest.mark.parametrize("size", [(48, 64), (64, 48)])
@pytest.mark.parametrize("framed", [True, False])
def test_reported_cameras_are_where_the_geometry_puts_them_and_see_the_ball_there(size, framed):
    part = parts.CameraShift((20, 60), (-5, 5), (0.8, 1.2), (0.9, 1.1), (-20, 20), framed=framed, views=SIDES)
    own = make(image_size=size)
    simulator = shifted(own, cameras=part)
    usual = seen(own)
    ball = torch.from_numpy(list(own.demonstrate())[-1][None, :3])
    now = seen(simulator)
    region = own._usual_rig().region
    for name, view in now.items():
        camera, before = as_mount(view), as_mount(usual[name])
        if name in SIDES:
            wanted = moved(before, simulator.drawn["cameras"]["views"][name], region, framed)
            assert np.linalg.norm(np.subtract(camera.position, before.position)) > 0.2
        else:
            wanted = before
        for key in ("position", "right", "up", "fov"):
            np.testing.assert_allclose(getattr(camera, key), getattr(wanted, key), atol=1e-5, err_msg=name)
        pixel = ours(view).project(ball, size).pixels[0].numpy()
        rows, columns = np.nonzero((view.image != BACKGROUND).any(axis=-1))
        if len(rows) and 0 < rows.min() <= rows.max() < size[0] - 1 and columns.max() < size[1] - 1:
            np.testing.assert_allclose(pixel, [columns.mean() + 0.5, rows.mean() + 0.5], atol=1, err_msg=name)
    own.close()


@pytest.mark.parametrize("size", [(48, 64), (64, 48)])
def test_framed_cameras_show_the_workspace_whatever_the_picture_s_shape(size):
    own = make(image_size=size)
    simulator = shifted(own, cameras=parts.CameraShift((0, 90), distance=(0.8, 1.3)))
    for index in range(3):
        for view in seen(simulator, Trial("reach_target", 3, index)).values():
            points = torch.from_numpy(framed_points(own._usual_rig().region))
            pixels = ours(view).project(points, size).pixels.numpy()
            assert (pixels >= 0).all()
            assert (pixels <= size[::-1]).all()
            assert np.ptp(pixels, axis=0).max() > 0.8 * min(size)
    own.close()


@pytest.mark.parametrize(
    "given",
    [
        {"cameras": TURNED},
        {"light": parts.LightShift(tilt=(30, 30), strength=(0.5, 0.5), colour=(0.1, 0.5))},
        {"distractors": parts.DistractorShift((3, 5))},
    ],
    ids=lambda given: next(iter(given)),
)
def test_the_usual_scene_comes_back(simulator, given):
    usual, scene = seen(simulator), simulator.scene()
    changed = seen(shifted(simulator, **given))
    assert any(not np.array_equal(changed[name].image, usual[name].image) for name in FIXED)
    for name, view in seen(simulator).items():
        np.testing.assert_array_equal(view.image, usual[name].image)
        np.testing.assert_allclose(view.world_from_camera, usual[name].world_from_camera, atol=1e-5)
        np.testing.assert_array_equal(view.intrinsics, usual[name].intrinsics)
    assert simulator.scene() == scene
    assert simulator.diagnostics()["scene_change"] == 0


def test_light_is_as_bright_as_drawn(simulator):
    usual = seen(simulator)["front"].image.astype(float)
    for part, factor in (
        (parts.LightShift(strength=(0.5, 0.5)), 0.5),
        (parts.LightShift(tilt=(60, 60)), 0.25 + 0.75 * 0.5),
    ):
        picture = seen(shifted(simulator, light=part))["front"].image
        np.testing.assert_allclose(picture, usual * factor, atol=1)
    coloured = shifted(simulator, light=parts.LightShift(colour=(0.2, 0.6)))
    picture = seen(coloured)["front"].image
    np.testing.assert_allclose(picture, usual * coloured.drawn["light"]["tint"], atol=1)


def discs(view, usual) -> int:
    """Distractors' colours that a picture shows."""
    new = view.image[(view.image != usual.image).any(axis=-1)]
    return len({tuple(pixel) for pixel in new.tolist()})


def test_distractors_lie_on_the_table_and_change_neither_task_nor_success(simulator):
    usual, plain = seen(simulator)["overhead"], simulator.scene()
    demonstration = np.stack(list(simulator.demonstrate()))
    crowded = shifted(simulator, distractors=parts.DistractorShift((4, 4)))
    scenes = []
    for _ in range(2):
        view = seen(crowded)["overhead"]
        scenes.append((crowded.scene(), view.image))
        assert 1 <= discs(view, usual) <= 4
        np.testing.assert_array_equal(np.stack(list(simulator.demonstrate())), demonstration)
        assert simulator.diagnostics()["scene_change"] == 0
        assert [crowded.step(action) for action in crowded.demonstrate()][-1].success
    assert scenes[0][0] == scenes[1][0]
    np.testing.assert_array_equal(scenes[0][1], scenes[1][1])
    assert simulator.scene() != plain


def test_every_arm_plays_one_shifted_scene_though_live_demonstrations_are_chance(faulty):
    shift = Shift(cameras=TURNED, distractors=parts.DistractorShift((2, 4)))
    rules = EvaluationProtocol(max_seconds=0.2, trials_per_task=4, tasks=("reach_target",), shift=shift)
    made = Benchmark(faulty("flaky", views=SIDES), rules, parallel=2)
    trials, clip = made.trials(), Clip(size=(48, 64), views=SIDES)
    runs, floor = made.run(HoldStill(), trials, clip), made.floor(trials[::-1], clip)[::-1]
    assert [run.stop_reason for run in runs] == ["timeout"] * 4
    assert [run.scene for run in runs] == [run.scene for run in floor]
    assert len({run.scene for run in runs}) == 4
    made.close()


def test_collected_frames_are_those_of_the_shifted_scene(simulator):
    shift = Shift(cameras=TURNED)
    episode = Demonstrations(simulator, ["reach_target"], 1, views=["front"], shift=shift)[0]
    frame = next(iter(episode.frames)).views["front"]
    trial = Trial.from_id(episode.provenance["trial"])
    view = seen(ShiftedSimulator(simulator, shift), trial)["front"]
    np.testing.assert_array_equal(frame.world_from_camera, view.world_from_camera)
    assert not np.allclose(frame.world_from_camera, seen(simulator, trial)["front"].world_from_camera)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"light": parts.LightShift(lamps=(1, 3))}, r"lamps of LightShift is \[1, 3\]; PyRep makes none"),
        ({"appearance": parts.AppearanceShift()}, r"RLBench cannot build \['appearance'\]; the parts it can"),
    ],
)
def test_what_pyrep_cannot_do_is_refused_before_anything_runs(given, message):
    fresh = make()
    with pytest.raises(ValueError, match=message):
        shifted(fresh, **given)
    assert not fresh._server.running


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (parts.CameraShift(elevation=(0, 20)), r"'overhead' from 88 degrees to 88 to 108; it must stay in"),
        (parts.CameraShift(distance=(1, 4), views=SIDES), r"camera 'front' 5\.\d m from .* up to 3\.5 m"),
        (parts.CameraShift(fov=(1, 4), views=("left_shoulder",)), r"widen camera 'left_shoulder' to \d+ deg"),
    ],
)
def test_ranges_of_cameras_are_refused_as_soon_as_the_cameras_are_known(part, message):
    fresh = make()
    simulator = shifted(fresh, cameras=part)
    with pytest.raises(ValueError, match=message):
        simulator.reset(TRIAL)
    fresh._rig = None
    seen(shifted(fresh, cameras=TURNED))
    with pytest.raises(ValueError, match=message):
        shifted(fresh, cameras=part)
    fresh.close()
