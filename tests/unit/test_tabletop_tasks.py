"""Tasks of the tabletop suite: goals, failures, experts, scenes, instructions."""

import numpy as np
import pytest

from ai_wam.types import Clip
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop import camera_rigs as rigs
from benchmarks.simulators.tabletop import robot_tasks as tasks
from benchmarks.simulators.tabletop import scene
from benchmarks.simulators.tabletop.expert_motions import DOWN, Leg, distance_to_segment, min_jerk, through
from benchmarks.simulators.tabletop.kinematics import Pose
from benchmarks.simulators.tabletop.physics_world import World
from benchmarks.simulators.tabletop.robot_tasks.base import draw
from benchmarks.simulators.tabletop.robot_tasks.close_laptop_lid import CLOSED_BY
from benchmarks.simulators.tabletop.robot_tasks.close_laptop_lid import OPEN as LID_OPEN
from benchmarks.simulators.tabletop.robot_tasks.reach_target import APART, COLOURS, REACHED
from benchmarks.simulators.tabletop.simulator import Tabletop

NAMES = tasks.names()
HZ = 20.0


@pytest.fixture(scope="module")
def simulator():
    return Tabletop(rig="framed", randomise_start=0.5)


def build(name, workspace="framed"):
    """A task and a world of its own."""
    task = tasks.load(name, rigs.WORKSPACES[workspace])
    mounts = rigs.mounts("wide", task.region)
    return task, World(scene.mjcf(task.bodies(), task.assets(), mounts, (16, 16), 0.005, False), HZ)


def play(simulator, trial):
    """The expert's results, one per step."""
    simulator.reset(trial)
    return [simulator.step(action) for action in simulator.demonstrate()]


def drive(world, task, position, steps=60):
    """Statuses on the way of the tip to a position."""
    statuses = []
    for _ in range(steps):
        world.follow(Pose(np.asarray(position), world.tip().quaternion), 1.0)
        statuses.append(task.status(world))
    return statuses


def test_the_four_tasks_are_found_by_their_files():
    assert NAMES == ("close_drawer", "close_laptop_lid", "pick_up_cup", "reach_target")


@pytest.mark.parametrize("name", NAMES)
def test_expert_succeeds_in_every_variation_and_start(simulator, name):
    variations = simulator.tasks()[name]
    for index in range(max(variations, 3)):
        results = play(simulator, Trial(name, index % variations, index, "train"))
        assert results[-1].success, (index, dict(simulator.diagnostics()))
        assert not any(result.failed for result in results)
        assert not results[0].done


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_demonstration_solves_little(name):
    """At most 15 % without looking; experts solve all of these scenes."""
    rules = EvaluationProtocol(max_seconds=5.0, trials_per_task=20, tasks=(name,))
    made = Benchmark(Tabletop(rig="framed", image_size=(16, 16)), rules, blind_demonstrations=6)
    blind = made.blind_floor(made.trials(), Clip(size=(16, 16), views=("front",)))
    assert sum(result.success for result in blind) <= 3
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_holding_still_never_succeeds(simulator, name):
    simulator.reset(Trial(name, 0, 1))
    action = simulator.pose()
    for _ in range(15):
        assert not simulator.step(action).done


@pytest.mark.parametrize("name", NAMES)
def test_variations_have_several_phrasings_of_their_own(simulator, name):
    seen = [simulator.reset(Trial(name, variation, 0)) for variation in range(simulator.tasks()[name])]
    assert all(len(set(phrasings)) >= 4 for phrasings in seen)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", NAMES)
def test_scene_is_restored_bit_by_bit(simulator, name):
    def poses():
        simulator.reset(Trial(name, 1, 7))
        taken = []
        for _, action in zip(range(40), simulator.demonstrate(), strict=False):
            simulator.step(action)
            taken.append(simulator.pose())
        return np.stack(taken)

    first = poses()
    play(simulator, Trial(name, 0, 8))
    np.testing.assert_array_equal(first, poses())


def test_reach_scenes_keep_spheres_apart_inside_the_box_and_off_the_way():
    task, world = build("reach_target", "wide")
    box, centres = rigs.WORKSPACES["wide"], []
    for seed in range(60):
        world.reset()
        task.place(world, np.random.default_rng(seed), seed % 6)
        centres.append(task.centres.copy())
        gaps = [np.linalg.norm(task.centres[i] - task.centres[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert min(gaps) >= APART
        ways = [
            distance_to_segment(centre, world.tip().position, task.centres[0]) for centre in task.centres[1:]
        ]
        assert min(ways) > REACHED
    drawn = np.concatenate(centres)
    assert (drawn >= box.low).all()
    assert (drawn <= box.high).all()
    assert (np.ptp(drawn, axis=0) > 0.9 * np.array(box.extent)).all()


def test_reach_colours_differ_and_the_first_is_the_named_one():
    task, world = build("reach_target")
    for seed in range(12):
        world.reset()
        task.place(world, np.random.default_rng(seed), seed % 6)
        painted = [tuple(world.model.mat_rgba[world.model.material(f"sphere{i}").id, :3]) for i in range(3)]
        assert len(set(painted)) == 3
        np.testing.assert_allclose(painted[0], list(COLOURS.values())[seed % 6], atol=1e-6)


def test_reaching_the_named_sphere_succeeds_within_four_centimetres():
    task, world = build("reach_target")
    task.place(world, np.random.default_rng(0), 0)
    status = task.status(world)
    assert not status.success
    for status in drive(world, task, task.centres[0]):
        distance = np.linalg.norm(world.tip().position - task.centres[0])
        if status.success:
            break
    assert status.success
    assert task.diagnostics(world)["nearest_is_named"] == 1.0
    assert distance < REACHED


def test_reaching_another_sphere_first_fails_for_good():
    task, world = build("reach_target")
    task.place(world, np.random.default_rng(3), 0)
    task.status(world)
    assert drive(world, task, task.centres[1])[-1] == (False, True)
    assert task.diagnostics(world) == {
        "any_sphere": 1.0,
        "nearest_is_named": 0.0,
        "final_distance_m": pytest.approx(np.linalg.norm(world.tip().position - task.centres[0])),
    }
    assert drive(world, task, task.centres[0])[-1] == (False, True)


def test_lifting_the_other_cup_fails():
    task, world = build("pick_up_cup")
    task.place(world, np.random.default_rng(0), 2)
    world.place_arm(world.kinematics.solve(Pose(np.array([0.25, 0, 1.1]), DOWN), np.zeros(7)).joints)
    joints = [world.data.joint(f"cup{i}").qpos for i in range(2)]
    swapped = joints[0].copy()
    joints[0][:], joints[1][:] = joints[1].copy(), swapped
    expert_for_other = task.expert(world)  # drawn up before the bodies are updated: it goes to the old place
    world.refresh()
    for action in expert_for_other:
        world.follow(Pose(action[:3], action[3:7]), action[7])
        status = task.status(world)
    assert status == (False, True)
    assert task.diagnostics(world)["any_cup"] == 1.0
    assert task.diagnostics(world)["highest_lift_m"] < 0.01


def test_a_drawer_pushed_too_little_is_not_closed():
    task, world = build("close_drawer")
    task.place(world, np.random.default_rng(0), 1)
    drawer = world.data.joint("drawer1")
    drawer.qpos[0] = 0.025
    assert task.status(world) == (False, False)
    drawer.qpos[0] = 0.015
    assert task.status(world) == (True, False)
    assert [float(world.data.joint(f"drawer{i}").qpos[0]) for i in (0, 2)] == [0.1, 0.0]


def test_a_drawer_that_is_not_named_is_to_be_left_alone():
    task, world = build("close_drawer")
    for seed in range(6):
        task.place(world, np.random.default_rng(seed), 2)
        out = [float(world.data.joint(f"drawer{i}").qpos[0]) for i in range(3)]
        assert sorted(out) == [0.0, 0.1, 0.1]
        assert out[2] == 0.1
    other = world.data.joint(f"drawer{out.index(0.1)}")
    other.qpos[0] = 0.075
    assert task.status(world) == (False, False)
    other.qpos[0] = 0.065
    assert task.status(world) == (False, True)
    task.place(world, np.random.default_rng(0), 0)
    assert [float(world.data.joint(f"drawer{i}").qpos[0]) for i in range(3)] == [0.1, 0.0, 0.0]


def test_a_lid_turned_too_little_is_not_closed():
    task, world = build("close_laptop_lid")
    task.place(world, np.random.default_rng(0), 1)
    lid = world.data.joint("lid")
    lid.qpos[0] = LID_OPEN - CLOSED_BY + 0.01
    assert not task.status(world).success
    lid.qpos[0] = LID_OPEN - CLOSED_BY - 0.01
    assert task.status(world).success
    assert task.diagnostics(world)["still_open_rad"] == pytest.approx(0.15)


def test_min_jerk_starts_and_ends_at_rest():
    shares = np.array([min_jerk(x) for x in np.linspace(0, 1, 101)])
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert shares[50] == pytest.approx(0.5)
    assert (np.diff(shares) > 0).all()
    assert max(shares[1], 1 - shares[-2]) < 1e-4


def test_legs_join_without_a_jump():
    start, goal = Pose(np.zeros(3), DOWN), Pose(np.array([0.3, 0.0, 0.4]), np.array([0.0, 0.0, 0.0, 1.0]))
    actions = np.stack(list(through(start, [Leg(goal, 1.0, 1.0), Leg(start, 0.0, 1.0)], HZ)))
    assert actions.shape == (40, 8)
    np.testing.assert_allclose(actions[19, :3], goal.position, atol=1e-12)
    np.testing.assert_allclose(np.abs(actions[19, 3:7] @ goal.quaternion), 1, atol=1e-9)
    np.testing.assert_allclose(actions[-1, :3], start.position, atol=1e-12)
    assert np.linalg.norm(np.diff(actions[:, :3], axis=0), axis=1).max() < 0.5 * 1.9 / 20
    off_line = actions[:, :3] - np.outer(actions[:, :3] @ [0.6, 0, 0.8], [0.6, 0, 0.8])
    assert np.abs(off_line).max() < 1e-12
    np.testing.assert_array_equal(actions[:, 7], [1.0] * 20 + [0.0] * 20)


def test_impossible_placement_is_told():
    with pytest.raises(RuntimeError, match=r"no resting place found in 2000 draws"):
        draw(lambda: 0, lambda value: value > 0, "resting place")
