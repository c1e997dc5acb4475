"""Meta-World: scenes, control and cameras beside the genuine package; what is said where it cannot run."""

import hashlib
import pickle
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import torch

from ai_wam.cameras import Cameras
from benchmarks.demonstrations import Demonstrations
from benchmarks.shifts import Shift, ShiftedSimulator
from benchmarks.shifts.parts import CameraShift, LayoutShift, LightShift
from benchmarks.simulator import Trial
from benchmarks.simulators.metaworld import camera_rigs as rigs
from benchmarks.simulators.metaworld import library
from benchmarks.simulators.metaworld import simulator as module
from benchmarks.simulators.metaworld.simulator import MetaWorld
from benchmarks.simulators.metaworld.task_list import INSTRUCTIONS, VARIATIONS, published_name
from benchmarks.simulators.metaworld.task_world import DOWN, TaskWorld, random_start
from benchmarks.simulators.mujoco_graphics import mujoco

needs_metaworld = pytest.mark.skipif(
    find_spec("metaworld") is None, reason="needs the extra: pip install 'ai-wam[metaworld]'"
)
SIZE = (128, 128)


@pytest.fixture(scope="module", params=rigs.RIGS)
def rigged(request):
    """A simulator of each rig, in a scene of `reach`."""
    made = MetaWorld(rig=request.param, image_size=SIZE)
    made.reset(Trial("reach", 0, 0))
    yield made
    made.close()


@pytest.fixture(scope="module")
def simulator():
    made = MetaWorld(image_size=(32, 32))
    yield made
    made.close()


def genuine(task, drawn):
    """Meta-World's environment of a task, in the scene of a draw, as `MT1` makes it; with its observation."""
    name = published_name(task)
    packages = library.load()
    kind = packages.environments[name]
    made = kind()
    described = {"env_cls": kind, "rand_vec": drawn, "partially_observable": False}
    made.set_task(packages.task_type(env_name=name, data=pickle.dumps(described)))
    return made, made.reset()[0], packages.experts[name]()


def test_every_task_has_phrasings_of_its_own():
    assert len(INSTRUCTIONS) == 50
    said = [phrase for phrases in INSTRUCTIONS.values() for phrase in phrases]
    assert all(len(phrases) >= 3 for phrases in INSTRUCTIONS.values())
    assert len(set(said)) == len(said)
    assert MetaWorld().tasks() == VARIATIONS == dict.fromkeys(INSTRUCTIONS, 1)


def test_a_missing_package_is_one_sentence_with_the_way_out(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(library, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"not installed; run `pip install 'ai-wam\[metaworld\]'`"):
        library.load.__wrapped__()


@pytest.mark.parametrize(("metaworld", "engine"), [("3.0.0", "3.3.0"), ("3.1.1", "4.0.0")])
def test_other_versions_are_refused_by_their_numbers(metaworld, engine):
    with pytest.raises(RuntimeError, match=f"has metaworld {metaworld} and mujoco {engine}; run `pip"):
        library.check_versions(metaworld, engine)


def test_a_package_that_metaworld_lacks_is_named(monkeypatch):
    def without(name):
        raise ModuleNotFoundError("No module named 'packaging'")

    monkeypatch.setattr(library, "version", lambda name: library.METAWORLD)
    monkeypatch.setattr(library.mujoco, "__version__", library.MUJOCO)
    monkeypatch.setattr(library.importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'packaging'\); run `pip install"):
        library.load.__wrapped__()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rig": "wide"}, r"rig 'wide' must be one of \['published', 'framed'\]"),
        ({"image_size": (0, 8)}, "image_size"),
        ({"views": ["corner"]}, r"\['corner'\] are unknown; the cameras are \['left_shoulder'"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorld(**arguments)


def test_unknown_tasks_come_with_near_ones():
    with pytest.raises(ValueError, match=r"'push-v3' among its 50; did you mean one of \['push'"):
        MetaWorld().reset(Trial("push-v3", 0, 0))


def test_pickles_as_its_settings():
    made = MetaWorld(rig="published", image_size=(8, 16), views=["corner2"])
    assert pickle.loads(pickle.dumps(made)).settings == made.settings
    assert made.definition(["push"]) == MetaWorld().definition(["push"]) != made.definition(["reach"])
    with pytest.raises(RuntimeError, match="call reset"):
        made.pose()


@needs_metaworld
def test_plain_names_are_those_of_the_package():
    packages = library.load()
    published = {published_name(task) for task in INSTRUCTIONS}
    assert published == set(packages.environments) == set(packages.experts)


# Tasks whose scene Meta-World builds otherwise when it draws while building: in each, other numbers differ.
@needs_metaworld
@pytest.mark.parametrize("task", ["push", "handle_press", "peg_unplug_side"])
def test_scene_and_expert_are_the_genuine_ones(task):
    world = TaskWorld(library.load(), task)
    for seed in (2, 1):  # the scene before must not matter
        world.reset(seed)
    other, observation, expert = genuine(task, world.state()[-len(world._environment._last_rand_vec) :])
    np.testing.assert_array_equal(world._observation, observation)
    np.testing.assert_array_equal(world.data.qpos, other.data.qpos)
    for step, pose in enumerate(world.expert()):
        world.follow(pose)
        with warnings.catch_warnings(action="ignore"):  # "Constant(s) may be too high"
            action = np.clip(expert.get_action(observation), -1, 1)
        observation, _, _, _, info = other.step(action)
        if step < 25:  # later, contact multiplies what rounding began
            np.testing.assert_allclose(world.data.qpos, other.data.qpos, atol=1e-9)
        if info["success"]:
            break
    assert world.solved
    assert bool(info["success"])


@needs_metaworld
def test_a_scene_is_the_same_bit_by_bit_in_another_process():
    code = (
        "import hashlib\n"
        "from benchmarks.simulators.metaworld.library import load\n"
        "from benchmarks.simulators.metaworld.task_world import TaskWorld\n"
        "world = TaskWorld(load(), 'push')\n"
        f"world.reset({Trial('push', 0, 3).seed})\n"
        "print(hashlib.sha256(world.state().tobytes()).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    world = TaskWorld(library.load(), "push")
    scenes = []
    for split in ("test", "train"):
        np.random.seed(0)
        world.reset(Trial("push", 0, 3, split).seed)
        scenes.append(hashlib.sha256(world.state().tobytes()).hexdigest())
    assert done.stdout.strip() == scenes[0] != scenes[1], done.stderr


@needs_metaworld
def test_follows_poses_and_says_which_it_cannot_have(simulator):
    simulator.reset(Trial("push", 0, 0))
    start = simulator.pose()
    assert start[7] == 1
    goal = np.array([*np.add(start[:3], (0.08, 0.05, 0.05)), *DOWN, 0.3])
    assert all(simulator.step(goal).reached for _ in range(40))
    np.testing.assert_allclose(simulator.pose()[:3], goal[:3], atol=0.003)
    assert simulator.pose()[7] == 0.3
    turned = np.array([*start[:3], 0.0, np.cos(0.4), np.sin(0.4), 0.0, 1.0])  # 46 degrees about the vertical
    assert not any(simulator.step(turned).reached for _ in range(40))
    np.testing.assert_allclose(simulator.pose()[:3], start[:3], atol=0.003)  # the position is followed
    assert abs(simulator.pose()[3:7] @ DOWN) > 0.99
    outside = np.array([*np.add(start[:3], (0, 0, 0.5)), *DOWN, 1.0])
    assert not any(simulator.step(outside).reached for _ in range(60))
    assert simulator.pose()[2] == pytest.approx(0.5, abs=0.02)  # the limit of this task


@needs_metaworld
def test_openness_is_the_published_effort_of_the_fingers(simulator):
    """An effort is a force: without an object any that closes, closes the fingers."""
    simulator.reset(Trial("reach", 0, 0))
    data, apart = simulator._current()[0].data, []
    for openness, effort in ((1.0, -1.0), (0.5, 0.0), (0.3, 0.4), (0.0, 1.0)):
        for _ in range(30):
            simulator.step(np.array([*simulator.pose()[:7], openness]))
        np.testing.assert_allclose(data.ctrl, [effort, -effort])
        apart.append(np.linalg.norm(data.body("leftpad").xpos - data.body("rightpad").xpos))
    assert min(apart[:2]) > 0.09  # metres
    assert max(apart[2:]) < 0.03


@needs_metaworld
def test_a_trial_may_last_longer_than_the_published_500_steps(simulator):
    simulator.reset(Trial("push", 0, 1))
    assert np.isnan(simulator.diagnostics()["reward"])
    still = simulator.pose()
    assert not any(simulator.step(still).done for _ in range(510))
    assert simulator.observe([]).seconds == 510 / 80
    assert 0 <= simulator.diagnostics()["reward"] <= 10


@needs_metaworld
def test_demonstrations_end_in_the_published_success(simulator):
    """A button that springs back counts as pressed, as in Meta-World, and poses are those reached."""
    source = Demonstrations(simulator, ["coffee_button"], episodes_per_task=1, record_hz=10.0, views=[])
    episode = source[0]
    frames = list(episode.frames)
    assert len(frames) > 5
    assert frames[1].seconds == pytest.approx(0.1)
    travel = np.linalg.norm(np.diff([frame.action[:3] for frame in frames], axis=0), axis=1)
    assert 0.1 < travel.sum() < 1  # metres


@needs_metaworld
def test_shadows_and_antialiasing_are_drawn_where_asked_for(simulator):
    made, found = MetaWorld(image_size=(32, 32), shadows=True), {}
    light = {shadows: Shift(light=LightShift(shadows=shadows)) for shadows in (None, True, False)}
    for name, one in (("usual", simulator), ("shaded", made)):
        for shadows, shift in light.items():
            shifted = ShiftedSimulator(one, shift)
            shifted.reset(Trial("reach", 0, 0))
            shifted.observe(["overhead"])
            drawing = one._pictures["reach", one._shaded]._drawing
            found[name, shadows] = drawing.shadowSize, drawing.offSamples
    published, none = (4096, 4), (0, 0)
    assert [found["usual", each] for each in light] == [none, published, none]
    assert [found["shaded", each] for each in light] == [published, published, none]
    made.close()


@needs_metaworld
def test_worlds_make_room_and_come_back_the_same(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 1)
    made, scenes = MetaWorld(image_size=(16, 16)), []
    for task in ("reach", "push", "reach"):
        made.reset(Trial(task, 0, 0))
        scenes.append((made.scene(), made.observe(["wrist"]).views["wrist"].image))
        assert list(made._worlds) == [task]
    assert scenes[0][0] == scenes[2][0] != scenes[1][0]
    np.testing.assert_array_equal(scenes[0][1], scenes[2][1])
    assert set(made.versions()) == {"metaworld", "gymnasium"}
    made.close()


def pixels(view, points):
    camera = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
    seen = camera.project(torch.from_numpy(np.atleast_2d(points)), view.image.shape[:2])
    return seen.pixels.numpy(), seen.depth.numpy(), seen.visible.numpy()


def genuine_pixels(world, camera, points):
    """Where MuJoCo's own camera for OpenGL draws points; pixel rows from the top."""
    scene, viewed = mujoco.MjvScene(world.model, 1000), mujoco.MjvCamera()
    viewed.type, viewed.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
    options, every = mujoco.MjvOption(), mujoco.mjtCatBit.mjCAT_ALL
    mujoco.mjv_updateScene(world.model, world.data, options, None, viewed, every, scene)
    eyes = scene.camera  # of a stereo pair, whose middle is the camera
    position = np.mean([eye.pos for eye in eyes], axis=0, dtype=np.float64)
    forward, up = np.asarray(eyes[0].forward, np.float64), np.asarray(eyes[0].up, np.float64)
    right = np.cross(forward, up)
    away = points - position
    scale = SIZE[0] / 2 * eyes[0].frustum_near / eyes[0].frustum_top / (away @ forward)
    return np.stack([SIZE[1] / 2 + scale * (away @ right), SIZE[0] / 2 - scale * (away @ up)], axis=1)


BOX = np.array(list(product((-0.2, 0.2), (0.5, 0.65, 0.8), (0.05, 0.3))))


@needs_metaworld
def test_cameras_are_mujocos_own_to_a_millionth_of_the_picture(rigged):
    world, frame = rigged._current()[0], rigged.observe()
    published = genuine("reach", world.state()[-len(world._environment._last_rand_vec) :])[0]
    for name, view in frame.views.items():
        camera = world.model.camera(rigs.RIGS[rigged.rig][name]).id
        found, depth, _ = pixels(view, BOX)
        there = depth > 0.05
        expected = genuine_pixels(world if rigged.rig == "framed" else published, camera, BOX)
        if rigged.rig == "published" and name.startswith("corner"):
            expected = np.array(SIZE[::-1]) - expected  # turned upright
            up = -view.world_from_camera[:3, 1]  # of OpenCV's axes
            assert up[2] > 0.5
        assert there.sum() >= 3
        np.testing.assert_allclose(found[there], expected[there], atol=1e-6 * SIZE[0], rtol=1e-6)


@needs_metaworld
def test_marks_are_drawn_where_they_are_projected(rigged):
    """Two pictures, with and without a mark: the pixels that changed are the mark's."""
    world, radius = rigged._current()[0], 0.02
    mark = world.model.site("goal").id
    world.model.site_size[mark], world.model.site_rgba[mark] = radius, (1, 0, 1, 1)
    errors = {name: [] for name in rigged.cameras}
    world.data.site_xpos[mark] = (0, 0, -5)
    empty = rigged.observe()
    points = [*BOX, *(np.add(rigged.pose()[:3], (x, y, -0.12)) for x in (0, 0.06) for y in (0.02, 0.06))]
    for point in points:
        world.data.site_xpos[mark] = point
        for name, view in rigged.observe().views.items():
            changed = (view.image != empty.views[name].image).any(axis=2)
            pixel, depth, visible = pixels(view, point)
            whole = np.pi * (view.intrinsics[0, 0] * radius / depth[0]) ** 2
            if visible[0] and abs(changed.sum() / whole - 1) < 0.15:  # else hidden in part
                middle = np.argwhere(changed).mean(axis=0)[::-1] + 0.5
                errors[name].append(np.abs(middle - pixel[0]).max())
    assert {name: len(found) >= 2 for name, found in errors.items()} == dict.fromkeys(rigged.cameras, True)
    worst = {name: float(max(found)) for name, found in errors.items()}
    assert max(worst.values()) < 0.6, worst


@needs_metaworld
def test_published_cameras_stand_where_published():
    made = MetaWorld(rig="published", image_size=(8, 8), views=["corner2", "topview", "wrist"])
    made.reset(Trial("reach", 0, 0))
    before = made.observe().views
    np.testing.assert_allclose(before["corner2"].world_from_camera[:3, 3], (1.3, -0.2, 1.1), atol=1e-9)
    np.testing.assert_allclose(before["topview"].world_from_camera[:3, 3], (0, 0.5, 1.5), atol=1e-9)
    assert before["corner2"].intrinsics[0, 0] == pytest.approx(4 / np.tan(np.deg2rad(30)))
    moved = made.pose()
    for _ in range(20):
        made.step(np.array([*np.add(moved[:3], (0.1, 0, 0)), *moved[3:]]))
    after, travel = made.observe().views, made.pose()[:3] - moved[:3]
    shift = after["wrist"].world_from_camera - before["wrist"].world_from_camera
    np.testing.assert_allclose(shift[:3, 3], travel, atol=0.01)
    np.testing.assert_array_equal(after["corner2"].world_from_camera, before["corner2"].world_from_camera)
    made.close()


@needs_metaworld
def test_framed_cameras_show_the_box_level(rigged):
    if rigged.rig == "framed":
        for name, view in rigged.observe(["left_shoulder", "right_shoulder", "overhead"]).views.items():
            found, _, visible = pixels(view, rigs.framed_points())
            assert visible.all(), name
            assert np.ptp(found, axis=0).max() > 0.9 * SIZE[0]  # and fills the picture
            assert view.world_from_camera[2, 0] == pytest.approx(0, abs=1e-9)  # its x axis is level


@needs_metaworld
@pytest.mark.parametrize("framed", [True, False])
def test_moved_cameras_turn_about_the_box_and_come_back(rigged, framed):
    """The calibration of a moved camera is that of the picture MuJoCo draws."""
    trial = Trial("reach", 0, 0)
    rigged.reset(trial)
    usual = rigged.observe().views
    part = CameraShift(azimuth=(25, 25), distance=(1.1, 1.1), framed=framed)
    shifted = ShiftedSimulator(rigged, Shift(cameras=part))
    shifted.reset(trial)
    world, frame, middle = rigged._current()[0], shifted.observe(), rigs.REGION.middle
    for name, view in frame.views.items():
        camera = world.model.camera(rigs.RIGS[rigged.rig][name]).id
        found, depth, _ = pixels(view, BOX)
        there = depth > 0.05
        expected = genuine_pixels(world, camera, BOX)
        np.testing.assert_allclose(found[there], expected[there], atol=1e-6 * SIZE[0], rtol=1e-6)
        before, after = (one.world_from_camera[:3, 3] - middle for one in (usual[name], view))
        if name == "wrist":
            np.testing.assert_array_equal(before, after)
            continue
        assert np.linalg.norm(after) == pytest.approx(1.1 * np.linalg.norm(before))
        turned = before[:2] @ after[:2] / np.linalg.norm(before[:2]) / np.linalg.norm(after[:2])
        assert np.degrees(np.arccos(turned)) == pytest.approx(25, abs=1e-4)
        if framed:
            assert pixels(view, rigs.framed_points())[2].all(), name
            assert view.world_from_camera[2, 0] == pytest.approx(0, abs=1e-9) or name in (
                "overhead",
                "topview",
            )
    rigged.reset(trial)
    for name, view in rigged.observe().views.items():
        np.testing.assert_array_equal(view.image, usual[name].image)
        np.testing.assert_array_equal(view.world_from_camera, usual[name].world_from_camera)


@needs_metaworld
@pytest.mark.parametrize("task", ["push", "reach", "stick_push"])
def test_a_random_start_moves_the_hand_and_nothing_else(simulator, task):
    trial = Trial(task, 0, 3, "train")
    simulator.reset(trial)
    usual, drawn = simulator.pose(), simulator._current()[0].state()[-6:]
    simulator.shift_next({"start": {"random": True}})
    simulator.reset(trial)
    begun = simulator.pose()[:3]
    assert np.linalg.norm(begun - usual[:3]) > 0.03
    np.testing.assert_allclose(begun, random_start(trial.seed), atol=0.02)
    np.testing.assert_array_equal(simulator._current()[0].state()[-6:], drawn)  # what Meta-World drew
    for action in simulator.demonstrate():
        result = simulator.step(action)
    assert result.success
    simulator.reset(trial)
    np.testing.assert_array_equal(simulator.pose(), usual)


@needs_metaworld
def test_light_is_shifted_as_drawn_and_comes_back(simulator):
    trial = Trial("push", 0, 0)
    simulator.reset(trial)
    usual = simulator.observe().views["left_shoulder"].image.astype(float)
    dark = ShiftedSimulator(simulator, Shift(light=LightShift(strength=(0.5, 0.5))))
    dark.reset(trial)
    half = dark.observe().views["left_shoulder"].image.astype(float)
    lit = (usual > 40) & (usual < 250)
    assert 0.45 < np.median(half[lit] / usual[lit]) < 0.6  # the lamps' reflections stay
    lamps = ShiftedSimulator(simulator, Shift(light=LightShift(lamps=(3, 3), tilt=(40, 40))))
    lamps.reset(trial)
    other = lamps.observe().views["left_shoulder"].image.astype(float)
    assert len(simulator._lamps) == 2
    assert np.abs(other - usual).mean() > 1
    assert 0.7 < other.mean() / usual.mean() < 1.3  # the lamps share the usual brightness
    simulator.reset(trial)
    np.testing.assert_array_equal(simulator.observe().views["left_shoulder"].image, usual)


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (Shift(cameras=CameraShift(elevation=(-40, 0))), r"'left_shoulder' from 2\d degrees to -1\d to 2\d"),
        (Shift(cameras=CameraShift(distance=(0.3, 1))), "stands in the workspace|widen camera"),
        (Shift(cameras=CameraShift(views=("corner",))), r"\['corner'\]; the cameras are \['left_shoulder'"),
        (Shift(layout=LayoutShift()), r"MetaWorld cannot build \['layout'\]"),
    ],
)
def test_shifts_it_cannot_build_are_refused(shift, message):
    with pytest.raises(ValueError, match=message):
        ShiftedSimulator(MetaWorld(), shift)


@needs_metaworld
def test_published_cameras_are_checked_where_they_stand():
    with pytest.raises(ValueError, match="'topview' from 83 degrees to 83 to 88"):
        ShiftedSimulator(MetaWorld(rig="published"), Shift(cameras=CameraShift(elevation=(0, 5))))
