"""DROID's raw layout with the corrections that its authors published later.

A disc moves through each picture where the tool is, so that a right calibration finds motion under the
projected tool. In the first recording `ext1` was calibrated wrongly and corrected later, `ext2` wrongly and
never corrected; in the second one everything is right.
"""

import json
from pathlib import Path

import h5py
import numpy as np
from source_fixtures.truth import (
    TARGET,
    HandCamera,
    TrueEpisode,
    Truth,
    euler_xyz,
    pixels,
    quaternion_of,
    slanted,
    tool_positions,
)

from ai_wam.video import VideoEncoding, write_video

SIZE, FRAMES = (90, 160), 12
LENS = {"focal": 120.0, "centre": (82.5, 43.0)}
EXT1 = slanted(np.pi, np.radians(30), TARGET, 1.1, **LENS)
EXT2 = slanted(np.radians(100), np.radians(35), TARGET, 1.0, **LENS)
ASIDE = slanted(np.radians(100), np.radians(35), np.add(TARGET, [0.25, 0.1, 0.1]), 1.0, **LENS)
AWAY = slanted(0.0, np.radians(30), np.add(TARGET, [3.0, 0, 0]), 1.1, **LENS)
HAND = np.array([[0, -1, 0, 0.06], [1, 0, 0, 0.01], [0, 0, 1, -0.15], [0, 0, 0, 1.0]])  # tool from camera
SERIALS = {"wrist": "18026681", "ext1": "22008760", "ext2": "24400334"}
WORDS = ["Put the marker in the cup", "move the marker to the cup", "marker into cup"]


def turn(angle: float, axis: int) -> np.ndarray:
    """The rotation matrix about one of the fixed axes."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def six(pose: np.ndarray) -> np.ndarray:
    """x y z, roll pitch yaw of a rigid matrix."""
    r = pose[:3, :3]
    angles = [np.arctan2(r[2, 1], r[2, 2]), -np.arcsin(r[2, 0]), np.arctan2(r[1, 0], r[0, 0])]
    return np.concatenate([pose[:3, 3], angles])


def tool_poses(shift: float) -> np.ndarray:
    """Rigid matrices of the tool, as products of three turns."""
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, :3, 3] = tool_positions(FRAMES, shift)
    for pose, (roll, pitch, yaw) in zip(poses, euler_xyz(FRAMES), strict=True):
        pose[:3, :3] = turn(yaw, 2) @ turn(pitch, 1) @ turn(roll, 0)
    return poses


def discs(places: np.ndarray, seed: int) -> np.ndarray:
    """Grey noise that stands still, and an orange disc at each place."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    still = np.random.default_rng(seed).normal(110, 8, (*SIZE, 1)).clip(0, 255).astype(np.uint8)
    images = np.repeat(np.repeat(still[None], FRAMES, axis=0), 3, axis=3)
    for image, (u, v) in zip(images, places, strict=True):
        image[np.hypot(columns - u, rows - v) < 9] = (240, 140, 30)
    return images


def metadata(uuid: str) -> dict[str, object]:
    """The keys of a genuine file that a reader may look at."""
    content: dict[str, object] = {"uuid": uuid, "lab": "CLVR", "user": "a", "building": "b", "scene_id": 7}
    content |= {
        "success": True,
        "robot_serial": "panda-1",
        "r2d2_version": "1.3",
        "trajectory_length": FRAMES,
    }
    content["current_task"] = "Move object into or out of container"
    return content | {f"{name}_cam_serial": serial for name, serial in SERIALS.items()}


def write_recording(folder: Path, uuid: str, shift: float, recorded: dict[str, HandCamera]) -> TrueEpisode:
    """One recording; `recorded` are the calibrations of the cameras in the scene that trajectory.h5 holds."""
    (folder / "recordings" / "MP4").mkdir(parents=True)
    (folder / f"metadata_{uuid}.json").write_text(json.dumps(metadata(uuid)))
    tool, closed = tool_poses(shift), np.linspace(0, 1, FRAMES)
    in_hand = np.linalg.inv(HAND)[:3, 3]  # the tool's origin as the camera on the hand sees it
    fixed = np.array(LENS["centre"]) + LENS["focal"] * in_hand[:2] / in_hand[2]
    where = {
        "wrist": np.tile(fixed, (FRAMES, 1)),
        "ext1": pixels(EXT1, tool[:, :3, 3]),
        "ext2": pixels(EXT2, tool[:, :3, 3]),
    }
    images = {name: discs(places, seed) for seed, (name, places) in enumerate(where.items())}
    for name, stack in images.items():
        data = write_video(stack, 15.0, VideoEncoding(browser=True, gop=6))
        (folder / "recordings" / "MP4" / f"{SERIALS[name]}.mp4").write_bytes(data)
        (folder / "recordings" / "MP4" / f"{SERIALS[name]}-stereo.mp4").write_bytes(data)
    poses = {"wrist": np.stack([six(pose @ HAND) for pose in tool])}
    poses |= {name: np.tile(six(camera.world_from_camera), (FRAMES, 1)) for name, camera in recorded.items()}
    with h5py.File(folder / "trajectory.h5", "w") as file:
        state = file.create_group("observation/robot_state")
        state["cartesian_position"] = np.stack([six(pose) for pose in tool])
        state["gripper_position"] = closed
        state["joint_positions"] = np.zeros((FRAMES, 7))
        for name, pose in poses.items():
            for eye in ("left", "right"):
                file[f"observation/camera_extrinsics/{SERIALS[name]}_{eye}"] = pose
        file["action/cartesian_position"] = np.zeros((FRAMES, 6))
        file["observation/timestamp/skip_action"] = np.zeros(FRAMES, dtype=bool)
    actions = np.column_stack([tool[:, :3, 3], quaternion_of(euler_xyz(FRAMES)), 1 - closed])
    return TrueEpisode("", 15.0, (), actions, where, images)


def intrinsics() -> dict[str, dict[str, list[float]]]:
    """As published: fx, cx, fy, cy of pictures of 720 x 1280, eight times ours."""
    f, (cx, cy) = LENS["focal"], LENS["centre"]
    return {serial: {"cameraMatrix": [8 * f, 8 * cx, 8 * f, 8 * cy]} for serial in SERIALS.values()}


def write(root: Path) -> Truth:
    """Two recordings and the folder of annotations."""
    first, second = "CLVR+236539bc+2023-05-09-02h-08m-20s", "CLVR+236539bc+2023-05-09-03h-00m-00s"
    day = root / "raw" / "CLVR" / "success" / "2023-05-09"
    a = write_recording(day / "Tue_May__9_02:08:20_2023", first, 0, {"ext1": AWAY, "ext2": ASIDE})
    b = write_recording(day / "Tue_May__9_03:00:00_2023", second, 1, {"ext1": EXT1, "ext2": EXT2})
    annotations = root / "annotations"
    annotations.mkdir()
    place = "CLVR/success/2023-05-09/Tue_May__9_02:08:20_2023"
    corrected = {first: {"relative_path": place, SERIALS["ext1"]: six(EXT1.world_from_camera).tolist()}}
    words = {f"language_instruction{i + 1}": text for i, text in enumerate(WORDS)}
    for name, content in {
        "cam2base_extrinsic_superset": corrected,
        "intrinsics": {first: intrinsics(), second: intrinsics()},
        "droid_language_annotations": {first: words},
    }.items():
        (annotations / f"{name}.json").write_text(json.dumps(content))
    seen = {name: a.pixels[name] for name in ("wrist", "ext1")}
    task = (str(metadata(second)["current_task"]),)
    return Truth(
        {"path": str(root / "raw"), "annotations": str(annotations)},
        [
            TrueEpisode(first.replace("+", "_"), 15.0, tuple(WORDS), a.actions, seen, a.images),
            TrueEpisode(second.replace("+", "_"), 15.0, task, b.actions, b.pixels, b.images),
        ],
        levels=8.0,
    )
