"""Animated pictures for the loggers that take them: TensorBoard, W&B and MLflow."""

import io
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

_TAKERS = (TensorBoardLogger, WandbLogger, MLFlowLogger)


def video_takers(loggers: Sequence[Any]) -> list[Any]:
    """The loggers that take videos; where some are given and none does, a sentence says so, once."""
    found = [each for each in loggers if isinstance(each, _TAKERS)]
    if loggers and not found:
        _say_without(", ".join(type(each).__name__ for each in loggers))
    return found


@cache
def _say_without(names: str) -> None:
    rank_zero_info(
        f"sample videos are left out: {names} takes none; TensorBoard, W&B and MLflow do "
        "(configs/logger, docs/training.md)"
    )


def add_video(logger: Logger, tag: str, frames: Sequence[Image.Image], step: int, fps: int) -> None:
    """Log frames of one palette as an animated picture, which every browser plays.

    Args:
        logger: one of `video_takers`.
        tag: name of the video, such as samples/policy/0.
        frames: in time order.
        step: of the optimizer.
        fps: frames per second.
    """
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=1000 // fps, loop=0)
    if isinstance(logger, WandbLogger):
        data.seek(0)
        logger.log_video(tag, [data], step=step, format=["gif"])
    elif isinstance(logger, MLFlowLogger):
        _add_artifact(logger, tag, data.getvalue(), step)
    elif isinstance(logger, TensorBoardLogger):
        # `SummaryWriter.add_video` knows no current moviepy.
        h, w = frames[0].height, frames[0].width
        image = Summary.Image(height=h, width=w, colorspace=3, encoded_image_string=data.getvalue())
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        logger.experiment._get_file_writer().add_summary(summary, step)


def _add_artifact(logger: MLFlowLogger, tag: str, data: bytes, step: int) -> None:
    """A file among the run's artifacts, in a folder named by the tag."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"step-{step:07d}.gif"
        file.write_bytes(data)
        logger.experiment.log_artifact(logger.run_id, str(file), tag)
