"""Conditions of every block: the canvas condition again, and cameras as in the Action Images release."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ai_wam.cameras import Cameras
from ai_wam.errors import InvalidValue
from backbones.weights.action_images_release import POOLED_CAMERAS


class BlockConditions(nn.Module):
    """Conditions every block on the canvas again, through a low-rank map per block; zero at step 0.

    Args:
        channels: of the condition.
        patch: latent frames, rows and columns per token.
        rank: of the maps.
        width: of the tokens.
        blocks: how many there are.
    """

    def __init__(
        self, channels: int, patch: tuple[int, int, int], rank: int, width: int, blocks: int
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv3d(channels, rank, patch, patch, bias=False) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in range(blocks))
        for up in self.up:
            nn.init.zeros_(up.get_parameter("weight"))

    def forward(self, condition: Float[Tensor, "b k f h w"], block: int) -> Float[Tensor, "b n d"]:
        """What is added to the tokens of a block."""
        tokens: Tensor = self.up[block](self.down[block](condition).flatten(2).transpose(1, 2))
        return tokens


class ConditionedBlocks(nn.ModuleList):
    """A list of blocks that adds the condition to the tokens of each when a network iterates over it.

    It is added outside of the blocks, so that they are compiled once and not once per position. An iteration
    uses the condition that was set before it; blocks that are computed again in the backward pass keep
    theirs.
    """

    _conditions: tuple[BlockConditions]  # no module of this list: its names stay as they are
    _next: tuple[Tensor, Tensor | None] | None

    def condition_on(self, condition: Float[Tensor, "b k f h w"], chosen: Int[Tensor, "q"] | None) -> None:
        """Set the condition of the next iteration, and the indices of its tokens (None: all)."""
        self._next = (condition, chosen)

    def __iter__(self) -> Iterator[Any]:
        """The blocks, or, where a condition is set, functions that add it and call them."""
        following, self._next = self._next, None
        for index, block in enumerate(super().__iter__()):
            yield block if following is None else partial(self._call, block, index, *following)

    def _call(
        self,
        block: nn.Module,
        index: int,
        condition: Float[Tensor, "b k f h w"],
        chosen: Int[Tensor, "q"] | None,
        *arguments: Any,
        **named: Any,
    ) -> Any:
        """A block's result; its tokens come first, or by the name that diffusers gives them."""
        added = self._conditions[0](condition, index)
        added = added if chosen is None else added[:, chosen]
        if arguments:
            return block(arguments[0] + added.type_as(arguments[0]), *arguments[1:], **named)
        tokens = named.pop("hidden_states")
        return block(hidden_states=tokens + added.type_as(tokens), **named)


def condition_blocks(blocks: nn.Module, conditions: BlockConditions) -> None:
    """Turn a list of blocks into a `ConditionedBlocks`, in place."""
    blocks.__class__ = ConditionedBlocks
    assert isinstance(blocks, ConditionedBlocks)
    blocks._conditions, blocks._next = (conditions,), None


class CameraEncoders(nn.Module):
    """Cameras as one vector per latent frame and block, added to what self-attention takes; zero at step 0.

    This is how the released Action Images checkpoint is conditioned on cameras: camera latents are pooled to
    48 values (over neighbouring channels) on a grid of 16 x 16, and every block has a linear map of them. All
    tokens of a frame get the same vector. It costs two more clips to encode per view and, at 5 B, 1.1 B
    weights.

    Args:
        width: of the tokens.
        blocks: how many there are.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(math.prod(POOLED_CAMERAS), width) for _ in range(blocks))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, latents: Float[Tensor, "b e f h w"] | None) -> Float[Tensor, "blocks b f d"]:
        """What is added to the tokens of every frame, block by block.

        Raises:
            ValueError: a canvas without camera latents.
        """
        if latents is None:
            raise InvalidValue(
                "camera_encoders: the canvas has no camera latents; give those of the backbone's "
                "`encode_cameras` to `build_canvas`"
            )
        pooled = functional.adaptive_avg_pool3d(latents.transpose(1, 2), POOLED_CAMERAS).flatten(2)
        return torch.stack([encoder(pooled) for encoder in self.maps])


def ray_videos(cameras: Cameras, size: tuple[int, int], frames: int) -> Float[Tensor, "2 b v 3 t h w"]:
    """Directions, and moments divided by 3 m, of every pixel's ray: two videos per view, near [-1, 1].

    They lie in the camera frame of view 0 at time 0 with RLBench's axes (x left, y up), in which the released
    checkpoint was trained; zeros where a calibration is lost.

    Args:
        cameras: leading dimensions "b v t"; t = 1 stands for cameras that do not move.
        size: height and width in pixels.
        frames: how many frames the videos have.
    """
    exact = cameras.to(torch.float64)
    rays = exact.relative_to(exact.world_from_camera[:, :1, :1]).to(torch.float32).plucker(size).nan_to_num(0)
    rays = rays * rays.new_tensor([-1, -1, 1, -1 / 3, -1 / 3, 1 / 3])  # half a turn about z, for both vectors
    videos = rearrange(rays, "b v t h w (kind c) -> kind b v c t h w", kind=2)
    return videos.expand(-1, -1, -1, -1, frames, -1, -1)
