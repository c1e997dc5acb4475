"""BridgeData V2's raw folders: one trajectory with cameras that somebody estimated, one without.

The pickles hold what the recorder writes: a dictionary of arrays, NumPy scalars and plain values.
"""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from source_fixtures.truth import (
    FRONT,
    SIDE,
    SIZE,
    TrueEpisode,
    Truth,
    euler_xyz,
    pictures,
    pixels,
    quaternion_of,
    tool_positions,
)

FRAMES = 6
SESSION = Path("bridge_data_v2", "datacol1_toykitchen1", "many_skills", "00", "2023-03-15_13-35-28", "raw")


def key_of(place: str) -> str:
    return (
        f"2023-03-15_13-35-28-traj_group0-{Path(place).name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    )


def quarter_turned(quaternions: np.ndarray) -> np.ndarray:
    """Followed by a quarter turn about the tool's y axis: the product with (0, s, 0, s), s = sqrt(1/2)."""
    x, y, z, w = quaternions.T * np.sqrt(0.5)
    return np.stack([x - z, y + w, z + x, w - y], axis=1)


def write_trajectory(folder: Path, shift: float, suffix: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """States and pictures; gives actions and pictures."""
    folder.mkdir(parents=True)
    angles, openness = euler_xyz(FRAMES) - [np.pi, 0, 0], np.linspace(1.02, 0.1, FRAMES)
    states = np.column_stack([tool_positions(FRAMES, shift), angles, openness])
    content = {
        "full_state": states,
        "desired_state": states,
        "qpos": np.zeros((FRAMES, 6)),
        "time_stamp": [np.float64(i / 5) for i in range(FRAMES)],
        "env_done": [False] * FRAMES,
    }
    data = pickle.dumps(content, protocol=3).replace(b"numpy._core", b"numpy.core")  # as NumPy 1 wrote it
    (folder / "obs_dict.pkl").write_bytes(data)
    (folder / "policy_out.pkl").write_bytes(pickle.dumps([{"actions": np.zeros(7)}] * (FRAMES - 1)))
    images = {"images0": pictures(FRAMES), "images1": pictures(FRAMES, 2)}
    for name, stack in images.items():
        (folder / name).mkdir()
        for number, image in enumerate(stack):
            Image.fromarray(image).save(folder / name / f"im_{number}{suffix}", quality=95)
    (folder / "depth_images0").mkdir()
    quaternions = quarter_turned(quaternion_of(angles))
    return np.column_stack([states[:, :3], quaternions, openness.clip(0, 1)]), images


def write(root: Path) -> Truth:
    """One session of two trajectories."""
    group = root / SESSION / "traj_group0"
    actions, images = write_trajectory(group / "traj2", 0, ".jpg")
    others, more = write_trajectory(group / "traj10", 1, ".png")
    cameras = {
        name: {
            "K": camera.intrinsics.tolist(),
            "size": list(SIZE),
            "camera_to_world": camera.world_from_camera.tolist(),
        }
        for name, camera in {"images0": FRONT, "images1": SIDE}.items()
    }
    (group / "traj2" / "cameras.json").write_text(json.dumps(cameras))
    (group / "traj2" / "lang.txt").write_text("put the pot in the sink\nmove the pot\nconfidence: 0.9\n")
    places = [str((SESSION / "traj_group0" / name).as_posix()) for name in ("traj2", "traj10")]
    where = {"images0": pixels(FRONT, actions[:, :3]), "images1": pixels(SIDE, actions[:, :3])}
    words = ("put the pot in the sink", "move the pot")
    return Truth(
        {"path": str(root), "views": ["images0", "images1"]},
        [
            TrueEpisode(key_of(places[0]), 5.0, words, actions, where, images),
            TrueEpisode(key_of(places[1]), 5.0, ("",), others, {}, more),
        ],
        levels=4.0,
    )
