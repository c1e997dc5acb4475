"""Real-time chunking: actions that are already being carried out are given while the next ones are generated.

The canvas gives whole latent frames, and codecs and tokens tie some of them together: a prefix grows in steps
of `frame_multiple` video frames (4 for Wan). Given positions are never noised, so what is generated continues
them, and they come back bit-identical.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ai_wam.canvas import Plan
from ai_wam.errors import InvalidValue
from ai_wam.types import Batch, LatentSpec, Observation


@dataclass(frozen=True)
class Prefix:
    """How a model is conditioned on committed actions, those carried out while the next chunk is planned.

    Attributes:
        dropin: share of rows that train with a random number of their first actions given.
        condition: whether a prediction is conditioned on committed actions; if not, it plans as if there were
            none.
    """

    dropin: float = 0.0
    condition: bool = True


def committed_prefix(
    observation: Observation, spec: LatentSpec, frames: int
) -> tuple[Float[Tensor, "b n 8"], Int[Tensor, "b"]]:
    """The condition that committed actions give.

    Args:
        observation: with committed actions.
        spec: the backbone's latents.
        frames: of the clip.

    Returns:
        The present action and the committed ones, as many as a codec takes, and how many latent frames after
        the first every row is given: those its committed actions fill; what fills none is left to generate.

    Raises:
        ValueError: a prefix that is no whole number of steps, or leaves nothing to generate.
    """
    assert observation.committed is not None
    actions, valid = observation.committed.actions, observation.committed.valid
    step, count = spec.frame_multiple, actions.shape[1]
    if count % step or not 0 < count < frames - 1:
        possible = list(range(step, frames - 1, step))
        raise InvalidValue(
            f"a prefix of {count} committed actions does not fit this model: its latent frames hold {step} "
            f"actions at a time and its clip has {frames - 1}, so protocol.prefix may be one of {possible}; "
            "prefix.condition: false plans without them"
        )
    held = torch.where(valid[..., None], actions, observation.action[:, None])
    filled = valid.long().cumprod(dim=1).sum(dim=1) // step * (step // spec.temporal_stride)
    return torch.cat([observation.action[:, None], held], dim=1), filled


def check_dropin(share: float, spec: LatentSpec, frames: int) -> None:
    """Refuse a share of given prefixes that cannot be trained.

    Raises:
        ValueError: no share, or a clip too short to give some actions and generate others.
    """
    if not 0 <= share <= 1:
        raise InvalidValue(f"prefix.dropin must lie between 0 and 1, got {share}")
    step = spec.frame_multiple
    if share and frames - 1 <= step:
        raise InvalidValue(
            f"prefix.dropin {share}: a clip of {frames} frames has {frames - 1} actions, and {step} are "
            f"given at least; set clip.frames to {2 * step + 1} or more, or prefix.dropin to 0"
        )


def draw_prefix(
    share: float, chosen: Plan, batch: Batch, spec: LatentSpec, generator: torch.Generator
) -> Int[Tensor, "b"] | None:
    """Latent frames given to every row: in a share of them 1, 2 ... steps, equally often, else none.

    Only of plans that act: where the future is known anyway there is nothing to continue.
    """
    if not share or chosen.action is None or chosen.knows_cameras:
        return None
    rows, frames = batch.actions.shape[:2]
    steps = torch.randint(1, (frames - 1) // spec.frame_multiple, (rows,), generator=generator)
    steps = steps * (torch.rand(rows, generator=generator) < share)
    return (steps * (spec.frame_multiple // spec.temporal_stride)).to(batch.actions.device)


def begin(
    latents: Float[Tensor, "b v c n h w"], filled: Int[Tensor, "b"], length: int
) -> Float[Tensor, "b v c tl h w"]:
    """Latents of an action clip of which the first and `filled` more latent frames are known; else zeros."""
    known = torch.arange(latents.shape[3], device=latents.device) <= filled[:, None]
    clip = latents.new_zeros(*latents.shape[:3], length, *latents.shape[4:])
    clip[:, :, :, : latents.shape[3]] = latents * known[:, None, None, :, None, None]
    return clip
