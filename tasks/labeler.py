"""Recordings without actions as a source of episodes with actions, read off their videos by a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ai_wam.action_images import tool_points
from ai_wam.cameras import Cameras, CropResize
from ai_wam.canvas import Kind, plan
from ai_wam.types import Batch, Clip, Episode, EpisodeSource, Frame, View
from tasks.base import WorldActionTask

PLAN = "annotation"


@dataclass(frozen=True)
class Labels:
    """What a model read off a recording, frame by frame.

    Attributes:
        actions: pose and openness; between valid frames where a frame is not.
        valid: whether the pose was measured.
        confidence: of the decoder, 1 = exact, 0 = invalid.
        disagreement: root mean square distance in pixels of the clip's size between where the views show the
            three points and where the pose puts them; NaN where invalid.
    """

    actions: Float[np.ndarray, "t 8"]
    valid: Bool[np.ndarray, "t"]
    confidence: Float[np.ndarray, "t"]
    disagreement: Float[np.ndarray, "t"]

    def kept(self, min_confidence: float, min_share: float) -> bool:
        """Whether enough of the frames are sure enough, and every frame has an action."""
        sure = self.valid & (self.confidence >= min_confidence)
        return bool(np.isfinite(self.actions).all() and sure.mean() >= min_share)


class LabeledSource(EpisodeSource):
    """Another source's episodes with a model's actions in the place of their own.

    Every frame is labeled by itself: at a recording faster than the clip, frames take turns in as many
    passes. An episode of which too little is sure goes on without actions, and trains as video only. What was
    read stands in the provenance of every episode under "labels".

    Attributes:
        checkpoint: whose labels these are.
        min_confidence: below which a frame is not sure.
        min_share: of sure frames, below which an episode gets no actions.

    Args:
        source: the recordings; their own actions are neither read nor kept.
        task: a model that was trained on the annotation plan.
        checkpoint: its name, for the settings and the provenance.
        min_confidence: between 0 and 1.
        min_share: between 0 and 1.
        batch_size: windows per forward pass.
        device: where the model works; it goes there with the first episode.

    Raises:
        ValueError: a model that was not trained to label without a first action, or a share outside [0, 1].
    """

    def __init__(
        self,
        source: EpisodeSource,
        task: WorldActionTask,
        checkpoint: Mapping[str, Any],
        min_confidence: float = 0.2,
        min_share: float = 0.9,
        batch_size: int = 8,
        device: str = "cpu",
    ) -> None:
        trained = [each.name for each, _ in task.plans]
        if PLAN not in trained:
            raise ValueError(
                f"the checkpoint was trained on the plans {', '.join(trained)}, labeling videos without a "
                f"known first action needs {PLAN!r}; train with --model.plans.{PLAN} 0.1"
            )
        for name, value in (("min_confidence", min_confidence), ("min_share", min_share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        self.checkpoint, self.min_confidence, self.min_share = dict(checkpoint), min_confidence, min_share
        self._source, self._task, self._rows, self._device = source, task.eval(), batch_size, device

    def __len__(self) -> int:
        """As many as the other source has."""
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`, labeled; the other source is read twice, so that no recording is kept."""
        episode = self._source[index]
        labels = self._label(episode)
        kept = labels.kept(self.min_confidence, self.min_share)
        said = {
            "kept": kept,
            "valid": labels.valid.tolist(),
            "confidence": [round(float(value), 4) for value in labels.confidence],
            "disagreement_px": [
                round(float(value), 3) if np.isfinite(value) else None for value in labels.disagreement
            ],
        }
        again = self._source[index]
        frames = (
            replace(frame, action=labels.actions[number] if kept else None)
            for number, frame in enumerate(again.frames)
        )
        return replace(again, frames=frames, provenance={**again.provenance, "labels": said})

    def _label(self, episode: Episode) -> Labels:
        clip = self._task.clip
        video, cameras, mask = _stack(episode, clip)
        step = _step(episode, clip)
        found: dict[int, tuple[Any, ...]] = {}
        windows = list(_windows(video.shape[2], clip.frames, step))
        for begin in range(0, len(windows), self._rows):
            part = windows[begin : begin + self._rows]
            for window, read in zip(part, self._read(episode, part, video, cameras, mask), strict=True):
                for frame, values in zip(window, read, strict=True):
                    found.setdefault(frame, values)  # frames past the end repeat the last one
        columns = zip(*(found[frame] for frame in range(video.shape[2])), strict=True)
        actions, valid, confidence, disagreement = (np.stack(column) for column in columns)
        return Labels(actions, valid, confidence, disagreement)

    def _read(
        self,
        episode: Episode,
        windows: list[list[int]],
        video: UInt8[Tensor, "v 3 t h w"],
        cameras: Cameras,
        mask: Bool[Tensor, "v"],
    ) -> list[list[tuple[Any, ...]]]:
        """Action, validity, confidence and disagreement of every frame of every window."""
        rows, device = len(windows), self._task.to(self._device).device
        index = torch.tensor(windows)
        batch = Batch(
            video=video[:, :, index].movedim(2, 0) / 127.5 - 1,
            cameras=cameras.map(lambda matrix: matrix[:, index].movedim(1, 0)),
            view_mask=mask.expand(rows, -1),
            video_valid=torch.ones(index.shape, dtype=torch.bool),
            recorded=torch.ones(index.shape, dtype=torch.bool),
            actions=torch.zeros(*index.shape, 8),
            action_valid=torch.zeros(index.shape, dtype=torch.bool),
            prompts=(episode.instructions[0],) * rows,
            keys=tuple(f"{episode.key}@{window[0]}" for window in windows),
        ).to(device)
        images = self._task.imagine(batch, plan(PLAN))[Kind.ACTION]
        read = self._task.tokenizer.decode((images + 1) / 2, batch.cameras, batch.view_mask)
        points = tool_points(read.actions.double(), self._task.tokenizer.axis_length)
        seen = batch.cameras.to(torch.float64).project(
            points[:, None].expand(-1, len(mask), -1, -1, -1), self._task.clip.size
        )
        used = read.weight > 0
        square = torch.where(used, (read.pixels - seen.pixels).square().sum(-1), 0.0).sum((1, 3))
        disagreement = (square / used.sum((1, 3))).sqrt().masked_fill(~read.valid, torch.nan)
        columns = (read.actions, read.valid, read.confidence, disagreement.float())
        arrays = [column.cpu().numpy() for column in columns]
        return [
            [tuple(array[row, t] for array in arrays) for t in range(index.shape[1])] for row in range(rows)
        ]


def _stack(episode: Episode, clip: Clip) -> tuple[UInt8[Tensor, "v 3 t h w"], Cameras, Bool[Tensor, "v"]]:
    """A recording in the clip's views and size."""
    pictures: list[list[Tensor]] = [[] for _ in clip.views]
    cameras: list[list[Cameras]] = [[] for _ in clip.views]
    for frame in episode.frames:
        _check_views(episode, frame, clip)
        for index, name in enumerate(clip.views):
            if name in frame.views:
                picture, camera = _fitted(frame.views[name], clip)
                pictures[index].append(picture)
                cameras[index].append(camera)
    mask = torch.tensor([bool(each) for each in pictures])
    length = max(map(len, pictures))
    black = torch.full((3, length, *clip.size), 128, dtype=torch.uint8)  # about zero in [-1, 1]
    nowhere = Cameras(torch.eye(3).expand(length, 3, 3), torch.eye(4).expand(length, 4, 4))
    video = [torch.stack(each, dim=1) if each else black for each in pictures]
    tracks = [
        Cameras(torch.stack([c.intrinsics for c in each]), torch.stack([c.world_from_camera for c in each]))
        if each
        else nowhere
        for each in cameras
    ]
    return (
        torch.stack(video),
        Cameras(
            torch.stack([c.intrinsics for c in tracks]), torch.stack([c.world_from_camera for c in tracks])
        ),
        mask,
    )


def _fitted(view: View, clip: Clip) -> tuple[UInt8[Tensor, "3 h w"], Cameras]:
    fit = CropResize((view.image.shape[0], view.image.shape[1]), clip.size)
    picture = fit.images(torch.from_numpy(view.image).permute(2, 0, 1)).round().to(torch.uint8)
    matrices = (torch.from_numpy(each).float() for each in (view.intrinsics, view.world_from_camera))
    return picture, fit.cameras(Cameras(*matrices))


def _check_views(episode: Episode, frame: Frame, clip: Clip) -> None:
    if not any(name in frame.views for name in clip.views):
        raise ValueError(
            f"episode {episode.key!r} has views {sorted(frame.views)}, the model knows {list(clip.views)}; "
            "name the recording's cameras as the model's"
        )


def _step(episode: Episode, clip: Clip) -> int:
    """Recorded frames from one frame of the clip to the next."""
    step = episode.hz * clip.seconds_per_frame
    if abs(step - round(step)) > 1e-3 or round(step) < 1:
        raise ValueError(
            f"episode {episode.key!r} has {episode.hz:g} frames a second, the model's clip "
            f"{1 / clip.seconds_per_frame:g}; the former must be a multiple of the latter: resample it"
        )
    return round(step)


def _windows(length: int, frames: int, step: int) -> Iterator[list[int]]:
    """Frame numbers of clips that cover a recording; short passes repeat their last frame."""
    for phase in range(min(step, length)):
        numbers = list(range(phase, length, step))
        for begin in range(0, len(numbers), frames):
            begin = max(0, min(begin, len(numbers) - frames))
            window = numbers[begin : begin + frames]
            yield window + window[-1:] * (frames - len(window))
