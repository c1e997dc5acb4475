"""Clips of a tool that moves before two cameras at right angles, which several test files share."""

import torch

from ai_wam.cameras import Cameras
from ai_wam.types import Batch


def batch_of(rows: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    k = torch.tensor([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]]).expand(rows, 2, 9, 3, 3)
    poses = torch.eye(4).repeat(rows, 2, 9, 1, 1)
    side = torch.tensor([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    poses[:, 1] = side
    actions = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).repeat(rows, 9, 1)
    actions[:, :, :3] += 0.1 * torch.randn(rows, 9, 3, generator=g)
    return Batch(
        video=torch.rand(rows, 2, 3, 9, 32, 32, generator=g) * 2 - 1,
        cameras=Cameras(k, poses),
        view_mask=torch.ones(rows, 2, dtype=torch.bool),
        video_valid=torch.ones(rows, 9, dtype=torch.bool),
        recorded=torch.ones(rows, 9, dtype=torch.bool),
        actions=actions,
        action_valid=torch.ones(rows, 9, dtype=torch.bool),
        prompts=("reach the red ball",) * rows,
        keys=tuple(f"episode{row}" for row in range(rows)),
    )
