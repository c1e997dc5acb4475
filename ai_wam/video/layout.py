"""Pictures composed of pictures: overlays, triptychs and grids."""

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ai_wam.action_images.blob_drawing import PEDESTAL
from ai_wam.errors import InvalidValue


def to_uint8(video: Float[Tensor, "*n 3 h w"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Video in [-1, 1] as pictures, channels last; values outside are clipped."""
    levels = (video.detach().float().cpu() + 1) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous().numpy()


def overlay(
    observation: Float[Tensor, "*n 3 h w"], action_images: Float[Tensor, "*n 3 h w"]
) -> UInt8[np.ndarray, "*n h w 3"]:
    """The points of action images painted over what the camera saw; both in [-1, 1].

    What the background level of the blue channel (the gripper's openness) can explain is left transparent.
    """
    level = (action_images.detach().float().cpu() + 1) / 2
    colour = ((level - PEDESTAL) / (1 - PEDESTAL)).clamp(0, 1)
    opacity = colour.amax(dim=-3, keepdim=True)
    scene = (observation.detach().float().cpu() + 1) / 2
    return to_uint8((scene * (1 - opacity) + colour) * 2 - 1)


def triptych(
    observation: Float[Tensor, "v 3 t h w"], action_images: Float[Tensor, "v 3 t h w"]
) -> UInt8[np.ndarray, "t vh w3 3"]:
    """Observation, action images and their overlay side by side, one row per view; both in [-1, 1]."""
    scene, actions = observation.movedim(1, 2), action_images.movedim(1, 2)  # v t 3 h w
    columns = np.concatenate(
        [to_uint8(scene), to_uint8(actions), overlay(scene, actions)], axis=-2
    )  # v t h 3w 3
    return np.concatenate(list(columns), axis=1)


def grid(videos: Sequence[np.ndarray], columns: int | None = None) -> UInt8[np.ndarray, "t gh gw 3"]:
    """Videos of one frame size on one sheet, row by row.

    Shorter ones hold their last frame; empty cells are black.

    Args:
        videos: uint8 "t h w 3", of any lengths.
        columns: cells per row; a nearly square sheet if left out.

    Raises:
        ValueError: no video, or frames of different sizes.
    """
    sizes = {video.shape[1:] for video in videos}
    if len(sizes) != 1:
        raise InvalidValue(
            f"grid: the videos must be at least one, all of one frame size; got {sorted(sizes)}"
        )
    longest = max(len(video) for video in videos)
    columns = columns or ceil(sqrt(len(videos)))
    held = [np.concatenate([video, np.repeat(video[-1:], longest - len(video), axis=0)]) for video in videos]
    held += [np.zeros_like(held[0])] * (-len(held) % columns)
    rows = [np.concatenate(held[i : i + columns], axis=2) for i in range(0, len(held), columns)]
    return np.concatenate(rows, axis=1)
