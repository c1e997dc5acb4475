"""The plan by which each row of a batch is trained, and checks of the batch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from ai_wam.canvas import Plan, plan
from ai_wam.errors import InvalidValue
from ai_wam.types import Batch, Clip
from ai_wam.utils.number_checks import check_numbers

Lengths = tuple[str | None, ...]  # of the segments of a plan
WITHOUT_ACTIONS = "video_only"  # what rows without recorded actions train by


def mixture(shares: Mapping[str, float]) -> list[tuple[Plan, float]]:
    """Plans by name, with their relative shares.

    Raises:
        ValueError: an unknown name, or nothing with a positive share.
    """
    for name, share in shares.items():
        check_numbers("plans", at_least=0, **{name: share})
    plans = [(plan(name), share) for name, share in shares.items() if share > 0]
    if not plans:
        raise InvalidValue(f"plans must name at least one plan with a positive share, got {dict(shares)}")
    return plans


def draw_plans(
    plans: Sequence[tuple[Plan, float]], batch: Batch, generator: torch.Generator
) -> list[tuple[Plan, list[int]]]:
    """Each plan with its rows.

    Rows without recorded actions take part as video-only. So do rows without any calibrated camera, for which
    no action can be drawn, where their video is known.
    """
    shares = torch.tensor([share for _, share in plans])
    draws = torch.multinomial(shares, len(batch.keys), replacement=True, generator=generator).tolist()
    calibrated = batch.cameras.world_from_camera.isfinite().flatten(2).all(2)
    blind = ~(calibrated & batch.view_mask).any(1) & _video_known(batch)
    without = ~batch.action_valid.all(1) | blind
    rows = defaultdict(list)
    for row, draw in enumerate(draws):
        chosen = plans[draw][0]
        if chosen.needs_actions and bool(without[row]):
            chosen = plan(WITHOUT_ACTIONS)
        rows[chosen].append(row)
    return list(rows.items())


def by_lengths(drawn: Sequence[tuple[Plan, list[int]]]) -> dict[Lengths, list[tuple[Plan, list[int]]]]:
    """The drawn plans whose canvases can be joined, together."""
    found: dict[Lengths, list[tuple[Plan, list[int]]]] = defaultdict(list)
    for chosen, rows in drawn:
        found[chosen.lengths].append((chosen, rows))
    return found


def drop_prompts(batch: Batch, share: float, generator: torch.Generator) -> list[str]:
    """The prompts, a share of them empty."""
    drop: Tensor = torch.rand(len(batch.keys), generator=generator) < share
    return ["" if dropped else prompt for prompt, dropped in zip(batch.prompts, drop.tolist(), strict=True)]


def check_clip(batch: Batch, clip: Clip) -> None:
    """Refuse data of another clip than the model's.

    Raises:
        ValueError: pictures of another size, or more views than the clip has.
    """
    found, wanted = tuple(batch.video.shape[-2:]), tuple(clip.size)
    if found != wanted or batch.video.shape[1] > len(clip.views):
        raise InvalidValue(
            f"the data gives {batch.video.shape[1]} views of {found} pixels, the model's clip has "
            f"{len(clip.views)} views of {wanted}; give both the same clip"
        )


def check_video(batch: Batch, chosen: Plan) -> None:
    """Refuse plans that need the video where it was not decoded.

    Raises:
        ValueError: a plan that needs the whole video, and a row that lacks it.
    """
    if not chosen.needs_video:
        return
    known = _video_known(batch).tolist()
    missing = [key for key, valid in zip(batch.keys, known, strict=True) if not valid]
    if missing:
        raise InvalidValue(
            f"plan {chosen.name!r} needs all frames of the observation video, which {missing[0]!r} "
            "lacks; set `decode: all` in the data's configuration"
        )


def _video_known(batch: Batch) -> Bool[Tensor, "b"]:
    """Which rows have all their pictures, or the latents of them."""
    if batch.encoded is not None and batch.encoded.video is not None:
        return torch.ones(len(batch.keys), dtype=torch.bool, device=batch.video.device)
    return batch.video_valid.all(1)
