"""Plain files, as docs/shards.md describes them: one camera stands still, one moves with the tool."""

import json
from pathlib import Path

import numpy as np
from source_fixtures.truth import FRONT, SIZE, WRIST, TrueEpisode, Truth, pictures, pixels, poses

from ai_wam.video import VideoEncoding, write_video

FRAMES, HZ = 6, 12.5


def write_episode(folder: Path, shift: float, acts: bool) -> TrueEpisode:
    """Gives what must be read."""
    folder.mkdir()
    tool, opened = poses(FRAMES, shift), np.linspace(1, 0, FRAMES)
    wrist = [WRIST.moved(position - tool[0, :3]) for position in tool[:, :3]]
    images = {"front": pictures(FRAMES), "wrist": pictures(FRAMES, 3)}
    for name, stack in images.items():
        (folder / f"{name}.mp4").write_bytes(write_video(stack, HZ, VideoEncoding(lossless=True, gop=4)))
    inverse = [np.linalg.inv(camera.world_from_camera).tolist() for camera in wrist]
    front = {"K": FRONT.intrinsics.tolist(), "size": SIZE}
    cameras = {
        "front": {**front, "camera_to_world": FRONT.world_from_camera.tolist()},
        "wrist": {"K": WRIST.intrinsics.tolist(), "size": SIZE, "world_to_camera": inverse},
    }
    (folder / "cameras.json").write_text(json.dumps(cameras))
    (folder / "instruction.txt").write_text("pick it up\nlift it\n")
    (folder / "meta.json").write_text(json.dumps({"hz": HZ, "operator": "ann"}))
    actions = np.column_stack([tool, opened])
    if acts:
        header = "x,y,z,qx,qy,qz,qw,openness"
        np.savetxt(folder / "actions.csv", actions, delimiter=",", header=header, comments="")
    where = {"front": pixels(FRONT, tool[:, :3]), "wrist": pixels(wrist, tool[:, :3])} if acts else {}
    words = ("pick it up", "lift it")
    return TrueEpisode(folder.name, HZ, words, actions if acts else None, where, images)


def write(root: Path) -> Truth:
    """Two recordings, the second without actions."""
    episodes = [write_episode(root / f"pick-000{n}", n, acts=n == 0) for n in range(2)]
    return Truth({"path": str(root)}, episodes)
