"""Validation errors by plan, sample videos, and the interface of test trials."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning import LightningModule
from PIL import Image
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer, DecodedActions
from ai_wam.canvas import Kind
from ai_wam.types import Batch, Policy
from ai_wam.video import triptych
from tasks.evaluation.video_loggers import add_video, video_takers
from tasks.metrics.action import ActionAccuracy

_SHOWN_HEIGHT = 384  # pixels, about


@runtime_checkable
class Trials(Protocol):
    """An item of test data that runs a policy and keeps the results itself."""

    def run(self, policy: Policy) -> None:
        """Run the policy and keep its results."""
        ...


class PlanErrors:
    """Errors of generated actions over an epoch of validation, by plan and decoder."""

    def __init__(self) -> None:
        self._found: dict[str, ActionAccuracy] = {}

    def update(self, plan: str, read: Mapping[str, DecodedActions], batch: Batch) -> None:
        """Add the decoded actions of a plan, by decoder."""
        for decoder, actions in read.items():
            name = plan if decoder == "geometric" else f"{plan}/{decoder}"
            if name not in self._found:
                self._found[name] = ActionAccuracy().to(batch.video.device)
            self._found[name].update(actions.actions[:, 1:], actions.valid[:, 1:], batch)

    def compute(self) -> dict[str, Tensor]:
        """The metrics, named val/PLAN/METRIC and val/PLAN/head/METRIC; the errors are reset."""
        found = {
            f"val/{name}/{figure}": value
            for name, errors in self._found.items()
            for figure, value in errors.compute().items()
        }
        self._found.clear()
        return found


def log_sample_videos(
    module: LightningModule,
    plan: str,
    batch: Batch,
    videos: Mapping[Kind, Float[Tensor, "b v 3 _ h w"]],
    tokenizer: ActionImageTokenizer,
    seconds_per_frame: float,
    rows: int = 4,
) -> None:
    """Sample videos of a plan to the loggers that take them, a row per view.

    Left to right: the observation (generated where the plan generates it), the action images (black where the
    plan has none) and their overlay; then the recorded observation, the recorded actions' images and their
    overlay.
    """
    loggers = video_takers(module.loggers)
    if not loggers or module.global_rank:
        return
    rows = min(rows, len(batch.keys))
    size = (batch.video.shape[-2], batch.video.shape[-1])
    truth = 2 * tokenizer.encode(batch.actions[:rows], batch.cameras[:rows], size) - 1
    seen = batch.video[:rows]
    shown = torch.where(batch.video_valid[:rows, None, None, :, None, None], seen, seen[:, :, :, :1])
    generated = videos.get(Kind.ACTION, torch.full_like(shown, -1))[:rows]
    observed = videos.get(Kind.VIDEO, shown)[:rows]
    observed = observed if observed.shape == shown.shape else shown  # the plan has its first frame only
    fps = max(1, round(1 / seconds_per_frame))
    for row in range(rows):
        pairs = ((observed[row], generated[row]), (shown[row], truth[row]))
        pictures = np.concatenate([triptych(left.cpu(), right.cpu()) for left, right in pairs], axis=2)
        frames = animated(pictures)
        for logger in loggers:
            add_video(logger, f"samples/{plan}/{row}", frames, module.global_step, fps)


def animated(video: UInt8[np.ndarray, "t h w 3"]) -> list[Image.Image]:
    """Frames of about `_SHOWN_HEIGHT` rows in one palette, so that colours do not flicker.

    An octree chooses the palette: its error is as small as that of the median cut, Pillow's default, which
    took as long as the rest of a small model's validation.
    """
    height = video.shape[1]
    larger, smaller = max(1, _SHOWN_HEIGHT // height), max(1, round(height / _SHOWN_HEIGHT))
    shown = np.stack([np.asarray(Image.fromarray(frame).reduce(smaller)) for frame in video])
    strip = Image.fromarray(shown.reshape(-1, *shown.shape[2:]))
    palette = strip.quantize(method=Image.Quantize.FASTOCTREE)
    strip = strip.quantize(palette=palette, dither=Image.Dither.NONE)
    indices = np.asarray(strip).reshape(shown.shape[:3]).repeat(larger, axis=1).repeat(larger, axis=2)
    frames = [Image.fromarray(frame) for frame in indices]
    for frame in frames:
        frame.putpalette(palette.getpalette() or ())
    return frames
