"""The released layout, a picture at every 4th step and padded keys; and the variant with one at each step."""

import json
import pickle
from pathlib import Path

import numpy as np
from source_fixtures.rlbench_demos import rlbench_matrices
from source_fixtures.truth import FRONT, SIDE, HandCamera, TrueEpisode, Truth, pictures, pixels, poses

from ai_wam.video import VideoEncoding, write_video


def write_view(folder: Path, images: np.ndarray, cameras: dict[str, HandCamera]) -> None:
    (folder / "rgb").mkdir(parents=True)
    (folder / "rgb" / "video.mp4").write_bytes(write_video(images, 5.0, VideoEncoding(lossless=True, gop=4)))
    entries = {}
    for key, camera in cameras.items():
        k, extrinsics = rlbench_matrices(camera)
        entries[key] = {"intrinsics": k.tolist(), "extrinsics": extrinsics.tolist()}
    (folder / "camera_params.json").write_text(json.dumps(entries))


def write(root: Path) -> Truth:
    steps, every = 14, 4
    tool = poses(steps)
    actions = np.column_stack([tool, np.arange(steps) % 2]).astype(np.float32)
    task = root / "close_jar"
    moving = [SIDE.moved(np.array([0.01 * step, 0, 0])) for step in range(steps)]

    sparse = task / "variation3" / "episodes" / "episode0"
    seen = list(range(0, steps, every))
    images = {"view0": pictures(len(seen)), "view10": pictures(len(seen), 2)}
    write_view(sparse / "view0", images["view0"], {f"{i:04d}": FRONT for i in range(len(seen))})
    write_view(sparse / "view10", images["view10"], {f"{i:04d}": moving[step] for i, step in enumerate(seen)})
    np.save(sparse / "actions.npy", actions)
    np.save(sparse / "key_frames.npy", np.array([5, 13]))

    dense = task / "variation10" / "episodes" / "episode0"
    every_image = {"view0": pictures(steps, 1)}
    write_view(dense / "view0", every_image["view0"], {str(step): moving[step] for step in range(steps)})
    np.save(dense / "actions.npy", actions)

    for variation, words in ((3, ["close the red jar", "red"]), (10, ["close the blue jar"])):
        file = task / f"variation{variation}" / "variation_descriptions.pkl"
        file.write_bytes(pickle.dumps(words))
    first = {
        "view0": pixels(FRONT, tool[::every, :3]),
        "view10": pixels(moving[::every], tool[::every, :3]),
    }
    episodes = [
        TrueEpisode(
            "close_jar-variation3-episode0",
            5.0,
            ("close the red jar", "red"),
            actions[::every],
            first,
            images,
        ),
        TrueEpisode(
            "close_jar-variation10-episode0",
            20.0,
            ("close the blue jar",),
            actions,
            {"view0": pixels(moving, tool[:, :3])},
            every_image,
        ),
    ]
    return Truth({"path": str(root)}, episodes)
