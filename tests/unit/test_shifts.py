"""Shifted scenes: what differs is what was drawn, cameras stay exact, all else is as without."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from ai_wam.cameras import Cameras
from ai_wam.episodes import View
from ai_wam.types import Clip
from benchmarks.demonstrations import Demonstrations
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol, digest
from benchmarks.policies import HoldStill
from benchmarks.shifts import Shift, ShiftedSimulator, parts
from benchmarks.simulator import Simulator, Trial
from benchmarks.simulators.camera_moves import framed_points
from benchmarks.simulators.mujoco_graphics import Pictures
from benchmarks.simulators.tabletop import camera_rigs as rigs
from benchmarks.simulators.tabletop.simulator import Tabletop
from datamodules.shards.source_settings import describe

VIEWS = ("front", "left_shoulder")
FIXED = ("front", "left_shoulder", "right_shoulder", "overhead")
EVERY = {
    "cameras": parts.CameraShift(azimuth=(20, 45), elevation=(-20, 20), distance=(0.7, 1.3), views=VIEWS),
    "light": parts.LightShift(lamps=(2, 3), tilt=(20, 60), strength=(0.5, 1.5), colour=(0.1, 0.5)),
    "appearance": parts.AppearanceShift((0.3, 1), (0.3, 1), (0.3, 1), (0.7, 0.9)),
    "distractors": parts.DistractorShift((3, 6)),
    "start": parts.StartShift(),
    "layout": parts.LayoutShift((0.05, 0.05)),
    "instruction": parts.InstructionShift(),
    "views": parts.ViewShift(lose=1),
    "sensor": parts.SensorShift(noise=(5, 10), blur=(0.5, 1), jpeg=(30, 60), exposure=(-1, 1)),
    "calibration": parts.CalibrationShift((1, 5), (5, 20)),
}


def tabletop(size=(48, 64), rig="framed") -> Tabletop:
    return Tabletop(rig=rig, image_size=size, views=VIEWS)


def shifted(size=(48, 64), **given) -> ShiftedSimulator:
    return ShiftedSimulator(tabletop(size), Shift(**given))


def trial(index=0, task="reach_target") -> Trial:
    return Trial(task, 0, index)


def seen(simulator, where: Trial, views=VIEWS) -> dict[str, View]:
    simulator.reset(where)
    return dict(simulator.observe(views).views)


def same(one: dict[str, View], other: dict[str, View]) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(getattr(one[name], part), getattr(other[name], part))
        for name in one
        for part in ("image", "intrinsics", "world_from_camera")
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_part_changes_scenes_the_same_way_every_time_and_leaves_no_trace(name):
    simulator = shifted(**{name: EVERY[name]})
    assert isinstance(simulator, Simulator)
    usual = seen(tabletop(), trial())
    texts = tabletop().reset(trial())
    first, again, other = (seen(simulator, trial(index)) for index in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    if name == "instruction":
        assert same(first, usual)
        assert not set(simulator.reset(trial())) & set(texts)
    else:
        assert not same(first, usual)
        assert simulator.reset(trial()) == texts
    assert same(seen(simulator.simulator, trial()), usual)
    for copied in (copy.deepcopy(simulator), pickle.loads(pickle.dumps(simulator))):
        assert same(seen(copied, trial()), first)
    assert json.loads(json.dumps(simulator.drawn)) == simulator.drawn
    assert simulator.drawn == simulator.shift.draw(trial(), simulator.cameras)
    simulator.close()


def test_parts_are_drawn_apart_and_their_composition_is_one_scene():
    both = shifted(cameras=EVERY["cameras"], light=EVERY["light"])
    alone = shifted(cameras=EVERY["cameras"])
    for index in range(3):
        both.reset(trial(index))
        alone.reset(trial(index))
        assert both.drawn["cameras"] == alone.drawn["cameras"]
        assert both.scene() != alone.scene()
    everything = shifted(**EVERY)
    assert list(seen(everything, trial())) in (["front"], ["left_shoulder"])


@pytest.mark.parametrize("rig", rigs.RIGS)
@pytest.mark.parametrize("framed", [True, False])
def test_moved_cameras_stay_exact(rig, framed):
    """The named sphere's centre is projected to the middle of the red pixels."""
    part = parts.CameraShift((10, 70), (0, 8), (0.8, 1.2), (0.9, 1.1), (-25, 25), framed=framed, views=VIEWS)
    simulator = ShiftedSimulator(tabletop((256, 256), rig), Shift(cameras=part))
    off = []
    for index in range(6):
        for view in seen(simulator, trial(index)).values():
            centre = simulator.simulator._task("reach_target").centres[0]
            cameras = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
            expected = cameras.project(torch.from_numpy(centre)[None], (256, 256)).pixels[0].numpy()
            red = (view.image[..., 0] > 130) & (view.image[..., 1:].max(axis=-1) < 60)
            rows, columns = np.nonzero(red)
            if len(rows) > 150:  # else another sphere or the arm stands before it
                off.append(np.abs(np.array([columns.mean(), rows.mean()]) + 0.5 - expected).max())
    assert len(off) >= 6
    assert np.median(off) < 1
    assert max(off) < 4  # partly hidden ones


def test_cameras_move_by_what_was_drawn():
    usual = seen(tabletop(), trial(), FIXED)
    middle = np.mean([rigs.WORKSPACES["framed"].low, rigs.WORKSPACES["framed"].high], axis=0)

    def spherical(view: View) -> np.ndarray:
        x, y, z = view.world_from_camera[:3, 3] - middle
        across = math.hypot(x, y)
        return np.array(
            [np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, across)), math.hypot(across, z)]
        )

    part = parts.CameraShift((30, 30), (-5, -5), (1.2, 1.2))
    simulator = shifted(cameras=part)
    signs = set()
    for index in range(8):
        for name, view in seen(simulator, trial(index), FIXED).items():
            azimuth, elevation, distance = spherical(view)
            before = spherical(usual[name])
            turned = (azimuth - before[0] + 180) % 360 - 180
            assert abs(turned) == pytest.approx(30, abs=1e-6)
            assert elevation - before[1] == pytest.approx(-5, abs=1e-6)
            assert distance / before[2] == pytest.approx(1.2)
            signs.add(turned > 0)
    assert signs == {True, False}


def test_framed_cameras_show_the_whole_workspace():
    points = torch.from_numpy(framed_points(rigs.WORKSPACES["framed"]))
    simulator = shifted((64, 64), cameras=parts.CameraShift((0, 90), (-10, 4), (0.5, 2)))
    for index in range(6):
        for view in seen(simulator, trial(index), FIXED).values():
            cameras = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
            pixels = cameras.project(points, (64, 64)).pixels
            assert pixels.min() >= 0
            assert pixels.max() <= 64
            assert pixels.amax(0).max() - pixels.amin(0).min() > 55


def test_calibration_errors_have_the_drawn_size_and_leave_pictures_alone():
    usual = seen(tabletop(), trial())
    for name, view in seen(shifted(calibration=parts.CalibrationShift((3, 3), (12, 12))), trial()).items():
        error = np.linalg.inv(usual[name].world_from_camera) @ view.world_from_camera
        angle = np.degrees(np.arccos((np.trace(error[:3, :3]) - 1) / 2))
        assert angle == pytest.approx(3, abs=1e-4)
        assert np.linalg.norm(error[:3, 3]) == pytest.approx(0.012, abs=1e-7)
        assert np.array_equal(view.image, usual[name].image)


def test_a_view_is_lost_in_mid_trial_but_never_the_last_one():
    simulator = shifted(views=parts.ViewShift(keep=VIEWS, lose=3, after=(0.2, 0.2)))
    simulator.reset(trial())
    assert set(simulator.observe(FIXED).views) == set(VIEWS)
    for _ in range(4):
        simulator.step(simulator.pose())
    assert len(simulator.observe(FIXED).views) == 1
    with pytest.raises(ValueError, match=r"nothing is left; keep at least one view"):
        simulator.observe(["overhead"])


def test_with_latency_pictures_are_older_than_the_pose():
    def pictures(simulator) -> list[np.ndarray]:
        simulator.reset(trial())
        found = [simulator.observe(["front"])]
        for action in list(simulator.demonstrate())[:8]:
            simulator.step(action)
            found.append(simulator.observe(["front"]))
        return [frame.views["front"].image for frame in found], [frame.action for frame in found]

    now, poses = pictures(tabletop())
    late, same_poses = pictures(shifted(sensor=parts.SensorShift(latency=(0.15, 0.15))))
    assert np.array_equal(poses, same_poses)
    assert all(np.array_equal(late[i], now[max(i - 3, 0)]) for i in range(9))
    assert not np.array_equal(now[8], now[5])


def test_noise_does_not_depend_on_how_often_one_looks():
    simulator = shifted(sensor=parts.SensorShift(noise=(9, 9)))
    simulator.reset(trial())
    one, other = (simulator.observe(VIEWS).views["front"].image for _ in range(2))
    usual = seen(tabletop(), trial())["front"].image
    assert np.array_equal(one, other)
    noise = (one.astype(float) - usual)[(usual > 40) & (usual < 215)]
    assert noise.std() == pytest.approx(9, abs=0.5)


@pytest.mark.parametrize("task", ["reach_target", "pick_up_cup", "close_drawer", "close_laptop_lid"])
def test_experts_solve_shifted_scenes(task):
    """Outside the usual box, from random starts, among distractors; the goal lies outside."""
    chosen = {name: EVERY[name] for name in ("cameras", "distractors", "start", "layout")}
    chosen["cameras"] = parts.CameraShift((0, 45), views=VIEWS)
    simulator, solved = shifted(**chosen), 0
    for index in range(4):
        simulator.reset(trial(index, task))
        for action in simulator.demonstrate():
            result = simulator.step(action)
        solved += result.success
    assert solved == 4


def test_layouts_put_the_named_object_outside():
    box = rigs.WORKSPACES["framed"]
    simulator = shifted(layout=parts.LayoutShift((0.04, 0.04)))
    for index in range(10):
        simulator.reset(trial(index))
        named, *others = simulator.simulator._task("reach_target").centres
        assert not box.contains(named)
        assert box.widened(0.04).contains(named)
        assert all(box.contains(other) for other in others)


def test_a_protocol_with_a_shift_is_another_one_for_every_arm():
    clip, shift = Clip(size=(48, 64), views=VIEWS), Shift(cameras=parts.CameraShift((45, 45)))
    rules = {"max_seconds": 2.0, "trials_per_task": 2, "tasks": ("reach_target",)}
    usual, moved = (Benchmark(tabletop(), EvaluationProtocol(**rules, shift=one)) for one in (None, shift))
    described = moved.protocol.describe(moved.simulator, clip)
    assert described["shift"]["cameras"]["azimuth"] == [45, 45]
    assert digest(described) == moved.protocol.hash(moved.simulator, clip)
    assert moved.protocol.hash(moved.simulator, clip) != usual.protocol.hash(usual.simulator, clip)
    assert "shift" not in usual.protocol.describe(usual.simulator, clip)
    trials = moved.trials()
    runs = [moved.run(HoldStill(), trials, clip), moved.ceiling(trials, clip), moved.floor(trials, clip)]
    assert [run.stop_reason for run in runs[1]] == ["success"] * 2
    scenes = [[run.scene for run in arm] for arm in runs]
    assert scenes[0] == scenes[1] == scenes[2]
    assert scenes[0] != [run.scene for run in usual.run(HoldStill(), trials, clip)]
    assert list(moved.drawn(trials)) == [one.id for one in trials]
    assert usual.drawn(trials) == {}


def test_demonstrations_are_randomised_and_say_what_was_drawn():
    shift = Shift(cameras=parts.CameraShift((0, 30)), light=parts.LightShift(strength=(0.5, 1.5)))
    source = Demonstrations(tabletop(), ["reach_target"], episodes_per_task=2, shift=shift)
    before = describe(source)
    one, other = source[0], source[1]
    assert describe(source) == before  # by which an interrupted collection is known again
    made = one.provenance
    assert made["simulator"] == "benchmarks.simulators.tabletop.simulator.Tabletop"
    assert made["shift"] == shift.describe()
    assert made["drawn"] == shift.draw(Trial.from_id(made["trial"]), rigs.VIEWS)
    assert made["drawn"] != other.provenance["drawn"]
    frames = list(one.frames)
    assert not np.array_equal(
        frames[0].views["front"].world_from_camera, next(iter(other.frames)).views["front"].world_from_camera
    )
    with pytest.raises(ValueError, match=r"shift has \['views'\]; a recording keeps all its views"):
        Demonstrations(tabletop(), ["reach_target"], shift=Shift(views=parts.ViewShift(lose=1)))


class Bare(Tabletop):
    """A simulator that builds its usual scenes only."""

    shift_parts = frozenset()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shift(), r"it has no part; give at least one of \['cameras', 'light'"),
        (lambda: parts.CameraShift(azimuth=(0, 200)), r"azimuth of CameraShift is \[0, 200\].* 0 and 180"),
        (lambda: parts.SensorShift(noise=(3, 1)), r"noise of SensorShift is \[3, 1\]"),
        (lambda: parts.LightShift(strength=(math.nan, 1)), r"strength of LightShift is \[nan, 1\]"),
        (lambda: parts.LightShift(lamps=(1.2, 1.8)), r"lamps of LightShift is \[1\.2, 1\.8\]; it counts"),
        (lambda: parts.StartShift(2.0), r"random of StartShift is 2\.0; a probability"),
        (lambda: shifted(cameras=parts.CameraShift(elevation=(0, 30))), r"'overhead' from \d+ .*name other"),
        (
            lambda: shifted(cameras=parts.CameraShift(distance=(0.25, 1))),
            r"a camera at \(0\.\d+, 0\.00, 1\.\d+\) m stands in the workspace, all of which it must show",
        ),
        (
            lambda: shifted(cameras=parts.CameraShift(distance=(0.5, 1), fov=(1, 4))),
            r"would widen camera 'front' to \d+ degrees; at most 140",
        ),
        (lambda: shifted(cameras=parts.CameraShift((5, 5), views=("wrist",))), "rides on the hand"),
        (lambda: shifted(cameras=parts.CameraShift((5, 5), views=("side",))), r"\['side'\]; the cameras are"),
        (lambda: shifted(views=parts.ViewShift(keep=("side",))), r"\['side'\]; the cameras are"),
        (lambda: shifted(views=parts.ViewShift(lose=-1)), r"lose of ViewShift is -1"),
        (
            lambda: ShiftedSimulator(Bare(), Shift(light=parts.LightShift())),
            r"Bare cannot build \['light'\]; the parts it can take are \['calibration', 'sensor', 'views'\]",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_shift_is_written_in_yaml(tmp_path):
    file = tmp_path / "shift.yaml"
    file.write_text("cameras: {azimuth: [20, 45], views: [front]}\nsensor: {noise: [0, 8]}\n")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--shift", type=Shift)
    made = parser.instantiate_classes(parser.parse_args([f"--shift={file}"])).shift
    wanted = Shift(cameras=parts.CameraShift((20, 45), views=("front",)), sensor=parts.SensorShift((0, 8)))
    assert made == wanted


def test_textures_are_drawn_as_the_model_has_them():
    simulator = tabletop()
    simulator.reset(trial())
    world, _ = simulator._current()
    pictures = Pictures(world.model, (48, 64), False)
    front = world.model.camera("front").id
    before = pictures.draw(world.data, front)
    world.model.tex_data[:] = 0
    pictures.upload_textures()
    after = pictures.draw(world.data, front)
    sky = (before == (209, 219, 229)).all(axis=-1)
    assert sky.mean() > 0.1
    assert (after[sky] == 0).all()
    assert np.array_equal(after[~sky], before[~sky])
    pictures.close()
