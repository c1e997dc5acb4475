"""Recordings as plain files, and where a person would see the tool in them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ai_wam.video import VideoEncoding, write_video
from datamodules.shards.reader import ShardSet

COLUMNS = "x,y,z,qx,qy,qz,qw,openness"


def write_actions(path: Path, actions: np.ndarray) -> None:
    """The table of docs/shards.md."""
    np.savetxt(path, actions, delimiter=",", header=COLUMNS, comments="")


def write_plain(shards: ShardSet, root: Path) -> None:
    """Episodes as plain files; a camera that moves has a pose per frame."""
    for index, entry in enumerate(shards.episodes):
        header, place = shards.header(index), root / entry.key
        place.mkdir(parents=True)
        cameras = {}
        for view, size in entry.views.items():
            images = shards.images(index, view, range(entry.frames))
            (place / f"{view}.mp4").write_bytes(write_video(images, entry.hz, VideoEncoding()))
            k, poses = header.intrinsics[view][0].tolist(), header.world_from_camera[view].tolist()
            pose = poses if len(poses) > 1 else poses[0]
            cameras[view] = {"K": k, "size": size, "camera_to_world": pose}
        (place / "cameras.json").write_text(json.dumps(cameras))
        (place / "instruction.txt").write_text("\n".join(header.instructions))
        (place / "meta.json").write_text(json.dumps({"hz": entry.hz}))
        write_actions(place / "actions.csv", header.actions)


def seen_points(shards: ShardSet, frames: int) -> Iterator[str]:
    """Lines of a table of seen points, in some frames of every episode: those that a camera shows."""
    for index, entry in enumerate(shards.episodes):
        header = shards.header(index)
        for view, (h, w) in entry.views.items():
            for number in np.linspace(0, entry.frames - 1, frames).round().astype(int):
                k, poses = header.intrinsics[view][0], header.world_from_camera[view]
                pose = poses[number if len(poses) > 1 else 0]
                away = pose[:3, :3].T @ (header.actions[number, :3] - pose[:3, 3])
                x, y = (k @ away)[:2] / away[2]
                if away[2] > 0 and 0 <= x <= w and 0 <= y <= h:
                    yield f"{entry.key},{view},{number},{x},{y}"
