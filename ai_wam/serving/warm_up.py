"""First uses of a policy, so that no client waits for them."""

from collections.abc import Iterable

import torch

from ai_wam.cameras import Cameras
from ai_wam.types import Clip, Committed, Observation, Policy


def warm_up(policy: Policy, clip: Clip, rows: Iterable[int], prefixes: Iterable[int] = ()) -> None:
    """Let a policy act on noise: with these numbers of rows, and with these numbers of committed actions."""
    for count in rows:
        policy.predict_action(noise(clip, count))
    for prefix in prefixes:
        policy.predict_action(noise(clip, 1, prefix))


def noise(clip: Clip, rows: int, prefix: int = 0) -> Observation:
    """Rows of noise seen by cameras that all look at a tool one metre away."""
    views, (h, w) = len(clip.views), clip.size
    k = torch.tensor([[w, 0, w / 2], [0, h, h / 2], [0, 0, 1.0]]).expand(rows, views, 1, 3, 3)
    poses = torch.stack([_beside(0.1 * view) for view in range(views)]).expand(rows, views, 4, 4)
    action = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]).expand(rows, 8)
    committed = Committed(action[:, None].repeat(1, prefix, 1), torch.ones(rows, prefix, dtype=torch.bool))
    return Observation(
        video=torch.rand(rows, views, 3, 1, h, w) * 2 - 1,
        cameras=Cameras(k.contiguous(), poses[:, :, None].contiguous()),
        view_mask=torch.ones(rows, views, dtype=torch.bool),
        action=action.contiguous(),
        seconds=torch.zeros(rows),
        prompts=("",) * rows,
        episodes=("warm-up",) * rows,
        committed=committed if prefix else None,
    )


def _beside(metres: float) -> torch.Tensor:
    pose = torch.eye(4)
    pose[0, 3] = metres
    return pose
