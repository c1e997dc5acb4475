"""What test data does by itself, and sample videos."""

import io
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import LightningModule
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import ActionChunk, Batch, Policy
from ai_wam.video import triptych

_SHOWN_HEIGHT = 384  # pixels, about


@runtime_checkable
class Trials(Protocol):
    """One item of test data: runs a policy and keeps the results itself."""

    def run(self, policy: Policy) -> None:
        """Run the policy and record what came of it."""
        ...


def log_sample_videos(
    module: LightningModule, batch: Batch, chunk: ActionChunk, tokenizer: ActionImageTokenizer, rows: int = 4
) -> None:
    """Sample videos to TensorBoard, a row per view.

    Left to right: the observation (imagined where the plan generates it), the generated action images and
    their overlay; then the recorded observation, the recorded actions' images and their overlay.
    """
    board = getattr(module.logger, "experiment", None)
    if not isinstance(board, SummaryWriter):
        return
    rows = min(rows, len(batch.keys))
    size = (batch.video.shape[-2], batch.video.shape[-1])
    truth = 2 * tokenizer.encode(batch.actions[:rows], batch.cameras[:rows], size) - 1
    seen = batch.video[:rows]
    shown = torch.where(batch.video_valid[:rows, None, None, :, None, None], seen, seen[:, :, :, :1])
    generated = chunk.imagined["action_images"][:rows]
    imagined = chunk.imagined.get("observation", shown.cpu())[:rows]
    fps = max(1, round(1 / chunk.dt))
    for row in range(rows):
        pictures = np.concatenate(
            [triptych(imagined[row], generated[row]), triptych(shown[row].cpu(), truth[row].cpu())], axis=2
        )
        _add_video(board, f"samples/{row}", pictures, module.global_step, fps)


def _add_video(
    board: SummaryWriter, tag: str, video: UInt8[np.ndarray, "t h w 3"], step: int, fps: int
) -> None:
    """An enlarged animated picture for TensorBoard; `SummaryWriter.add_video` knows no current moviepy."""
    scale = max(1, _SHOWN_HEIGHT // video.shape[1])
    frames = [Image.fromarray(frame.repeat(scale, axis=0).repeat(scale, axis=1)) for frame in video]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=1000 // fps, loop=0)
    h, w = frames[0].height, frames[0].width
    image = Summary.Image(height=h, width=w, colorspace=3, encoded_image_string=data.getvalue())
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
