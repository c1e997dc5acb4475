"""RLBench demonstrations as `dataset_generator.save_demo` leaves them, stepjam's and PerAct's layout.

The classes are made under their genuine module names for the moment of pickling, so the bytes are those that
RLBench itself would write: NumPy 1's module names and protocol 3 in the older layout, NumPy 2's in the other.
"""

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from source_fixtures.truth import FRONT, WRIST, HandCamera, TrueEpisode, Truth, pictures, pixels, poses

FRAMES = 6


@contextmanager
def genuine_classes() -> Iterator[tuple[type, type]]:
    """`Demo` and `Observation` under the names that a pickle carries."""
    modules = {
        name: ModuleType(name)
        for name in ("rlbench", "rlbench.demo", "rlbench.backend", "rlbench.backend.observation")
    }
    demo = type("Demo", (), {"__module__": "rlbench.demo"})
    observation = type("Observation", (), {"__module__": "rlbench.backend.observation"})
    modules["rlbench.demo"].Demo = demo
    modules["rlbench.backend.observation"].Observation = observation
    sys.modules.update(modules)
    try:
        yield demo, observation
    finally:
        for name in modules:
            del sys.modules[name]


def rlbench_matrices(camera: HandCamera) -> tuple[np.ndarray, np.ndarray]:
    """K with negative focal lengths; columns left, up, forward, position."""
    k = np.array([[-camera.focal, 0, camera.centre[0]], [0, -camera.focal, camera.centre[1]], [0, 0, 1.0]])
    pose = np.eye(4)
    pose[:3] = np.stack([-camera.right, -camera.down, camera.forward, camera.position], axis=1)
    return k, pose


def demo_bytes(steps: list[dict[str, Any]], variation: int | None, protocol: int, numpy_1: bool) -> bytes:
    """A pickled demonstration; `variation` is PerAct's extra attribute."""
    with genuine_classes() as (demo_class, observation_class):
        observations = []
        for step in steps:
            observations.append(observation_class())
            observations[-1].__dict__.update(step)
        demo: Any = demo_class()
        demo._observations, demo.random_seed = observations, np.random.RandomState(0).get_state()
        if variation is None:
            demo.num_reset_attempts = 1
        else:
            demo.variation_number = variation
        data = pickle.dumps(demo, protocol=protocol)
    return data.replace(b"numpy._core", b"numpy.core") if numpy_1 else data


def step(pose: np.ndarray, opened: float, cameras: dict[str, HandCamera], variation: int) -> dict[str, Any]:
    """An observation's attributes after its pictures were set to None."""
    misc: dict[str, Any] = {"variation_index": variation}
    for name, camera in cameras.items():
        k, extrinsics = rlbench_matrices(camera)
        misc |= {f"{name}_camera_intrinsics": k, f"{name}_camera_extrinsics": extrinsics}
        misc |= {f"{name}_camera_near": 0.01, f"{name}_camera_far": np.float64(3.2)}
    pictures = {f"{name}_{kind}": None for name in cameras for kind in ("rgb", "depth", "mask")}
    joints = {"joint_positions": np.zeros(7), "joint_velocities": np.zeros(7), "joint_forces": None}
    return {**pictures, **joints, "gripper_open": opened, "gripper_pose": pose, "misc": misc}


def write_episode(
    folder: Path, shift: float, variation: int | None, protocol: int, numpy_1: bool
) -> TrueEpisode:
    """Pictures and pickle of one demonstration; gives all but its key and phrasings."""
    tool, opened = poses(FRAMES, shift), np.array([1.0, 1, 1, 0, 0, 0])
    followed = [WRIST.moved(position - tool[0, :3]) for position in tool[:, :3]]
    steps = [
        step(pose, o, {"front": FRONT, "wrist": wrist}, variation or 0)
        for pose, o, wrist in zip(tool, opened, followed, strict=True)
    ]
    folder.mkdir(parents=True)
    (folder / "low_dim_obs.pkl").write_bytes(demo_bytes(steps, variation, protocol, numpy_1))
    images = {"front": pictures(FRAMES), "wrist": pictures(FRAMES, seed=3)}
    for name, stack in images.items():
        for kind in ("rgb", "depth", "mask"):
            (folder / f"{name}_{kind}").mkdir()
        for number, image in enumerate(stack):
            for kind in ("rgb", "depth", "mask"):
                Image.fromarray(image).save(folder / f"{name}_{kind}" / f"{number}.png")
    where = {"front": pixels(FRONT, tool[:, :3]), "wrist": pixels(followed, tool[:, :3])}
    return TrueEpisode("", 20.0, (), np.column_stack([tool, opened]), where, images)


def write(root: Path) -> Truth:
    """Two variations in stepjam's layout and one PerAct episode."""
    episodes = []
    for variation in (0, 1):
        folder = root / "reach_target" / f"variation{variation}"
        found = write_episode(folder / "episodes" / "episode0", variation, None, 3, numpy_1=True)
        words = [f"reach the target {variation}", f"touch ball {variation}"]
        (folder / "variation_descriptions.pkl").write_bytes(pickle.dumps(words, protocol=3))
        key = f"reach_target-variation{variation}-episode0"
        episodes.append(TrueEpisode(key, 20.0, tuple(words), found.actions, found.pixels, found.images))
    folder = root / "stack_cups" / "all_variations" / "episodes" / "episode0"
    found = write_episode(folder, 2, 7, 4, numpy_1=False)
    (folder / "variation_number.pkl").write_bytes(pickle.dumps(7))
    (folder / "variation_descriptions.pkl").write_bytes(pickle.dumps(["stack the cups"]))
    key = "stack_cups-all_variations-episode0"
    episodes.append(TrueEpisode(key, 20.0, ("stack the cups",), found.actions, found.pixels, found.images))
    return Truth({"path": str(root)}, episodes)
