"""Speed and soundness of the tabletop suite: `python -m benchmarks.speed.simulator [--experts 100]`.

Prints ms per picture and size, ms per control step and task, demonstrations per minute, the boxes that
spheres were drawn from and their size in pixels; with `--experts N` how often each scripted expert succeeds
in N scenes. Times are given twice: CPU time of all threads, which other work on the machine hardly touches,
and wall time.
"""

import time
from collections.abc import Callable

import numpy as np
from jsonargparse import auto_cli

from benchmarks.demonstrations import Demonstrations
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop import camera_rigs as rigs
from benchmarks.simulators.tabletop import robot_tasks as tasks
from benchmarks.simulators.tabletop import scene
from benchmarks.simulators.tabletop.physics_world import World
from benchmarks.simulators.tabletop.robot_tasks.reach_target import RADIUS, ReachTarget
from benchmarks.simulators.tabletop.simulator import Tabletop

_BAR_MS = 8.0  # per picture of 128 x 128 pixels
_BAR_EPISODES = 400  # reach_target per minute and process, 64 px, two views, 5 Hz
_BAR_EXPERTS = 0.95


def milliseconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Mean CPU and wall milliseconds of a call, after one that is not counted."""
    function()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        function()
    return 1e3 * (time.process_time() - cpu) / repeats, 1e3 * (time.perf_counter() - wall) / repeats


def print_rendering(repeats: int) -> None:
    """Milliseconds per picture."""
    print("picture, ms CPU / wall                " + "".join(f"{size:>16} px" for size in (64, 128, 256)))
    for name in tasks.names():
        cells = []
        for size in (64, 128, 256):
            simulator = Tabletop(image_size=(size, size), views=rigs.VIEWS)
            simulator.reset(Trial(name, 0, 0))
            cpu, wall = milliseconds(simulator.observe, repeats)
            cells.append(f"{cpu / len(rigs.VIEWS):9.2f} / {wall / len(rigs.VIEWS):6.2f}")
            simulator.close()
        print(f"  {name:<34} " + " ".join(f"{cell:>18}" for cell in cells))
    print(f"  bar: {_BAR_MS} ms wall at 128 px on two idle cores")


def print_steps() -> None:
    """Milliseconds per control step while the expert works, inverse kinematics included."""
    print("control step, ms CPU / wall (times real time)")
    for name in tasks.names():
        simulator = Tabletop()
        simulator.reset(Trial(name, 0, 0))
        steps, cpu, wall = 0, time.process_time(), time.perf_counter()
        for action in simulator.demonstrate():
            simulator.step(action)
            steps += 1
        cpu, wall = (1e3 * (now - then) / steps for now, then in _since(cpu, wall))
        print(f"  {name:<34} {cpu:9.2f} / {wall:6.2f}  ({1e3 / simulator.control_hz / wall:.0f} x)")


def print_demonstrations(episodes: int) -> None:
    """Demonstrations per minute of one process, two views of 64 pixels at 5 Hz."""
    print("demonstrations per minute, two views of 64 px at 5 Hz, by CPU / wall time")
    for name in tasks.names():
        simulator = Tabletop("framed", (64, 64), ("front", "left_shoulder"), randomise_start=0.5)
        source = Demonstrations(simulator, [name], episodes + 1)
        source[episodes]
        cpu, wall = time.process_time(), time.perf_counter()
        frames = sum(len(list(source[index].frames)) for index in range(episodes))
        cpu, wall = (60 * episodes / (now - then) for now, then in _since(cpu, wall))
        simulator.close()
        print(f"  {name:<34} {cpu:9.0f} / {wall:6.0f}  ({frames / episodes:.1f} frames each)")
    print(f"  bar: {_BAR_EPISODES} of reach_target")


def print_volumes(scenes: int) -> None:
    """Print the boxes that the spheres of `reach_target` are drawn from, and the spheres' size in pixels."""
    print(f"spheres of reach_target: box wanted -> spanned by {scenes} scenes, m; diameter at 64 px")
    for name, box in rigs.WORKSPACES.items():
        task = ReachTarget(box)
        mounts = rigs.mounts(name, box)
        world = World(scene.mjcf(task.bodies(), task.assets(), mounts, (8, 8), 0.005, False), 20.0)
        centres = []
        for seed in range(scenes):
            world.reset()
            task.place(world, np.random.default_rng(seed), seed % task.variations)
            centres.append(task.centres.copy())
        spanned = np.ptp(np.concatenate(centres), axis=0)
        print(f"  {name:<8} {_box(box.extent)} -> {_box(spanned)}")
        for view in ("front", "left_shoulder"):
            across = _diameters(mounts[view], box)
            print(f"    {view:<14} {across.min():.1f} to {across.max():.1f} px")


def print_experts(scenes: int) -> None:
    """How often the experts succeed, and how long they take."""
    print(f"experts in {scenes} scenes, every second start drawn at random (bar: {_BAR_EXPERTS:.0%})")
    for name, variations in Tabletop().tasks().items():
        simulator, successes, steps = Tabletop(randomise_start=0.5), 0, []
        for index in range(scenes):
            simulator.reset(Trial(name, index % variations, index))
            results = [simulator.step(action) for action in simulator.demonstrate()]
            successes += results[-1].success and not any(result.failed for result in results)
            steps.append(len(results) / simulator.control_hz)
        print(f"  {name:<34} {successes:4d} of {scenes}, {min(steps):.1f} to {max(steps):.1f} s")


def report(repeats: int = 20, episodes: int = 30, scenes: int = 300, experts: int = 0) -> None:
    """Print every table.

    Args:
        repeats: pictures of all views drawn per task and size.
        episodes: demonstrations timed per task.
        scenes: scenes drawn for the volumes.
        experts: scenes per task that the experts have to solve; 0 leaves them out.
    """
    print_rendering(repeats)
    print_steps()
    print_demonstrations(episodes)
    print_volumes(scenes)
    if experts:
        print_experts(experts)


def _since(cpu: float, wall: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Present and given readings of both clocks."""
    return (time.process_time(), cpu), (time.perf_counter(), wall)


def _box(extent: tuple[float, float, float] | np.ndarray) -> str:
    return " x ".join(f"{edge:.3f}" for edge in extent)


def _diameters(mount: rigs.Mount, box: rigs.Workspace) -> np.ndarray:
    """Pixels across of spheres at the box's corners in a picture of 64 pixels."""
    focal = 32 / np.tan(np.radians(mount.fov) / 2)
    depth = (box.corners - np.array(mount.position)) @ -np.cross(mount.right, mount.up)
    return focal * 2 * RADIUS / depth


if __name__ == "__main__":
    auto_cli(report, as_positional=False)
