"""Writes the README's animated picture of a demonstration next to its action images.

    python -m benchmarks.report.rollout_picture docs/rollout.webp

A row per view: the camera's picture, the action images drawn of the tool's poses, and the two overlaid.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.episodes import Episode, Frame
from ai_wam.errors import InvalidValue
from ai_wam.video import triptych
from benchmarks.demonstrations import Demonstrations
from benchmarks.simulators.tabletop.simulator import Tabletop

MAX_BYTES = 400_000  # of a picture in a README
_QUALITY = 70  # of WebP
_SECONDS_AT_END = 0.8  # how long the last picture stays, so that the end of the loop can be seen


def demonstration(task: str, views: Sequence[str], size: int, hz: float = 10.0) -> Episode:
    """The first test episode of a tabletop task.

    Args:
        task: its name.
        views: cameras.
        size: height and width of a view in pixels.
        hz: frames per second.
    """
    world = Tabletop(rig="framed", image_size=(size, size), views=tuple(views), shadows=True)
    return Demonstrations(world, (task,), episodes_per_task=1, split="test", record_hz=hz)[0]


def frames_with_actions(episode: Episode) -> UInt8[np.ndarray, "t gh gw 3"]:
    """Pictures, action images and their overlay side by side, one row per view."""
    frames = list(episode.frames)
    views = tuple(frames[0].views)
    pictures = _stack(frames, views, "image").movedim(-1, 1)  # v 3 t h w
    cameras = Cameras(_stack(frames, views, "intrinsics"), _stack(frames, views, "world_from_camera"))
    actions = torch.from_numpy(np.stack([frame.action for frame in frames if frame.action is not None]))
    size = (pictures.shape[-2], pictures.shape[-1])
    images = ActionImageTokenizer().encode(actions.float()[None], cameras[None], size)[0]
    return triptych(pictures / 127.5 - 1, images * 2 - 1)


def encode_webp(frames: UInt8[np.ndarray, "t h w 3"], hz: float) -> bytes:
    """An animated WebP that repeats for ever.

    Raises:
        ValueError: more bytes than a README's picture may have.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [round(1000 / hz)] * (len(pictures) - 1) + [round(1000 * _SECONDS_AT_END)]  # ms
    data = io.BytesIO()
    pictures[0].save(
        data,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=_QUALITY,
        method=6,
    )
    if data.tell() > MAX_BYTES:
        raise InvalidValue(
            f"rollout_picture: {data.tell()} bytes of at most {MAX_BYTES}; lower --size or name fewer --views"
        )
    return data.getvalue()


def _stack(frames: Sequence[Frame], views: Sequence[str], name: str) -> Float[Tensor, "v t *n"]:
    stacked = np.stack([[getattr(frame.views[view], name) for frame in frames] for view in views])
    return torch.from_numpy(stacked).float()


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="A demonstration next to its action images, as a WebP.")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--task", default="pick_up_cup", help="of the tabletop suite")
    parser.add_argument("--views", nargs="+", default=["front", "left_shoulder"])
    parser.add_argument("--size", type=int, default=192, help="pixels of a view's side")
    asked = parser.parse_args()
    episode = demonstration(asked.task, asked.views, asked.size)
    asked.out.write_bytes(encode_webp(frames_with_actions(episode), episode.hz))


if __name__ == "__main__":
    main()
