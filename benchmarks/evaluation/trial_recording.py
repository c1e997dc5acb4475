"""The numbers of a trial that has a video: poses, cameras and predicted chunks along time, as a .npz file.

Its arrays::

    seconds "n"                      of every picture of the video, from the trial's beginning
    poses "n 8"                      the tool, world frame, metres; openness
    intrinsics "n v 3 3"             of the video's panels, in their pixels; NaN where a view is missing
    world_from_camera "n v 4 4"      of the same
    control_hz                       control steps per second
    chunk_seconds "c", chunk_dt "c"  when a chunk was predicted, and seconds between its actions
    chunk_lengths "c"                number of its actions
    actions "a 8", valid "a"         of all chunks, one after another
    position_std "a"                 metres; NaN where the policy gives none
    panel "2"                        height and width of a panel of the video, pixels
    line                             pixels between two panels
    panels, views                    names of the video's columns and rows
    prompt                           the instruction
    mp4                              the bytes of the video
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.cameras import CropResize
from ai_wam.episodes import Frame
from benchmarks.evaluation.command_schedule import PlannedActions

FOLDER = "recordings"  # beside results.json


class TrialRecorder:
    """Collects the numbers.

    Args:
        views: names of the video's rows.
        panel: height and width of the pictures in the video, which are cropped and resized to it.
    """

    def __init__(self, views: Sequence[str], panel: tuple[int, int]) -> None:
        self._views, self._panel = views, panel
        self._frames: list[tuple[float, Any, np.ndarray, np.ndarray]] = []
        self._chunks: list[tuple[float, PlannedActions]] = []

    def add(self, frame: Frame) -> None:
        """Add one instant."""
        intrinsics = np.full((len(self._views), 3, 3), np.nan)
        poses = np.full((len(self._views), 4, 4), np.nan)
        for index, name in enumerate(self._views):
            if (view := frame.views.get(name)) is not None:
                fit = CropResize((view.image.shape[0], view.image.shape[1]), self._panel)
                intrinsics[index] = _fitted(fit, view.intrinsics)
                poses[index] = view.world_from_camera
        action = np.full(8, np.nan) if frame.action is None else frame.action
        self._frames.append((frame.seconds, action, intrinsics, poses))

    def begin_chunk(self, seconds: float, planned: PlannedActions) -> None:
        """Add the actions that were predicted at a time."""
        self._chunks.append((seconds, planned))

    def finish(self, mp4: bytes, panels: Sequence[str], line: int, control_hz: float, prompt: str) -> bytes:
        """The file.

        Args:
            mp4: the trial's video.
            panels: names of its columns.
            line: pixels between two panels.
            control_hz: control steps per second.
            prompt: the instruction.
        """
        seconds, poses, intrinsics, cameras = zip(*self._frames, strict=True)
        data = io.BytesIO()
        arrays: dict[str, Any] = {
            "seconds": np.array(seconds, dtype=np.float64),
            "poses": np.array(poses, dtype=np.float64),
            "intrinsics": np.array(intrinsics),
            "world_from_camera": np.array(cameras),
            "control_hz": np.array(float(control_hz)),
            "panel": np.array(self._panel),
            "line": np.array(line),
            "panels": np.array(list(panels)),
            "views": np.array(list(self._views)),
            "prompt": np.array(prompt),
            "mp4": np.frombuffer(mp4, dtype=np.uint8),
        }
        np.savez_compressed(data, **arrays, **self._chunk_arrays())
        return data.getvalue()

    def _chunk_arrays(self) -> dict[str, Any]:
        planned = [chunk for _, chunk in self._chunks]
        stds = [
            np.full(len(each.actions), np.nan) if each.position_std is None else each.position_std
            for each in planned
        ]
        return {
            "chunk_seconds": np.array([seconds for seconds, _ in self._chunks], dtype=np.float64),
            "chunk_dt": np.array([each.dt for each in planned], dtype=np.float64),
            "chunk_lengths": np.array([len(each.actions) for each in planned], dtype=np.int64),
            "actions": np.concatenate([np.empty((0, 8)), *(each.actions for each in planned)]),
            "valid": np.concatenate([np.empty(0, dtype=bool), *(each.valid for each in planned)]),
            "position_std": np.concatenate([np.empty(0), *stds]),
        }


def _fitted(fit: CropResize, intrinsics: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    fitted: Float[np.ndarray, "3 3"] = fit.intrinsics(torch.tensor(intrinsics, dtype=torch.float64)).numpy()
    return fitted
