"""A source of episodes whose actions a model labels from their videos."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ai_wam.action_images import tool_points
from ai_wam.cameras import Cameras, CropResize
from ai_wam.canvas import Kind, plan
from ai_wam.episodes import Episode, EpisodeSource, Labels, View
from ai_wam.errors import InvalidValue
from ai_wam.types import Batch, Clip
from tasks.base import WorldActionTask

PLAN = "annotation"
T = TypeVar("T")


class LabeledSource(EpisodeSource):
    """The episodes of another source, with actions labeled by a model.

    Every frame is labeled by itself: at a recording faster than the clip, frames take turns in as many
    passes. An episode with too few valid steps gets no actions, and trains as video only. How sure
    each frame is goes with every episode as its `labels`.

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
            raise InvalidValue(
                f"the checkpoint was trained on the plans {', '.join(trained)}, labeling videos without a "
                f"known first action needs {PLAN!r}; train with --model.plans.{PLAN} 0.1"
            )
        for name, value in (("min_confidence", min_confidence), ("min_share", min_share)):
            if not 0 <= value <= 1:
                raise InvalidValue(f"{name} must lie in [0, 1], got {value}")
        self.checkpoint, self.min_confidence, self.min_share = dict(checkpoint), min_confidence, min_share
        self._source, self._task, self._rows, self._device = source, task.eval(), batch_size, device

    def __len__(self) -> int:
        """As many as the other source has."""
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`, labeled; the other source is read twice, so that no recording is kept."""
        actions, labels = self._label(self._source[index])
        sure = labels.valid & (labels.confidence >= self.min_confidence)
        kept = bool(np.isfinite(actions).all() and sure.mean() >= self.min_share)
        again = self._source[index]
        frames = (
            replace(frame, action=actions[number] if kept else None)
            for number, frame in enumerate(again.frames)
        )
        provenance = {**again.provenance, "labels": {"kept": kept}}
        return replace(again, frames=frames, provenance=provenance, labels=labels)

    def _label(self, episode: Episode) -> tuple[Float[np.ndarray, "t 8"], Labels]:
        """Poses and their confidence; no more pictures are in memory than a batch of windows needs."""
        found: dict[int, tuple[Any, ...]] = {}
        clip = self._task.clip
        cut = _windows(_fitted(episode, clip), clip.frames, _step(episode, clip))
        for windows in _batches(cut, self._rows):
            for window, read in zip(windows, self._read(episode, windows), strict=True):
                for seen, values in zip(window, read, strict=True):
                    found.setdefault(seen.number, values)  # frames past the end repeat the last one
        if not found:
            raise InvalidValue(f"episode {episode.key!r} has no frames")
        columns = zip(*(found[number] for number in range(len(found))), strict=True)
        actions, valid, confidence, disagreement = (np.stack(column) for column in columns)
        return actions, Labels(valid, confidence, disagreement)

    def _read(self, episode: Episode, windows: list[list["_Seen"]]) -> list[list[tuple[Any, ...]]]:
        """Action, validity, confidence and disagreement of every frame of every window."""
        rows, frames, device = len(windows), self._task.clip.frames, self._task.to(self._device).device
        mask = windows[0][0].mask
        whole = torch.ones(rows, frames, dtype=torch.bool)
        batch = Batch(
            video=torch.stack([torch.stack([s.pictures for s in w], dim=2) for w in windows]) / 127.5 - 1,
            cameras=Cameras(
                *(
                    torch.stack([torch.stack([getattr(s.cameras, name) for s in w], dim=1) for w in windows])
                    for name in ("intrinsics", "world_from_camera")
                )
            ),
            view_mask=mask.expand(rows, -1),
            video_valid=whole,
            recorded=whole,
            actions=torch.zeros(rows, frames, 8),
            action_valid=torch.zeros_like(whole),
            prompts=(episode.instructions[0],) * rows,
            keys=tuple(f"{episode.key}@{window[0].number}" for window in windows),
        ).to(device)
        images = self._task.generate_videos(batch, plan(PLAN))[Kind.ACTION]
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
        return [[tuple(array[row, t] for array in arrays) for t in range(frames)] for row in range(rows)]


@dataclass(frozen=True)
class _Seen:
    """One frame in the clip's views and size; black and nowhere where a view is missing."""

    number: int
    pictures: UInt8[Tensor, "v 3 h w"]
    cameras: Cameras
    mask: Bool[Tensor, "v"]


def _fitted(episode: Episode, clip: Clip) -> Iterator[_Seen]:
    """A recording's frames, one by one.

    Raises:
        ValueError: a frame with none of the clip's views, or with other ones than the first frame has.
    """
    first: list[bool] | None = None
    for number, frame in enumerate(episode.frames):
        there = [name in frame.views for name in clip.views]
        first = there if first is None else first
        if not any(there):
            raise InvalidValue(
                f"episode {episode.key!r} has views {sorted(frame.views)}, the model knows "
                f"{list(clip.views)}; name the recording's cameras as the model's"
            )
        if there != first:
            raise InvalidValue(
                f"episode {episode.key!r}, frame {number} has views {sorted(frame.views)}, other ones than "
                "frame 0; leave out those that come and go"
            )
        pictures, cameras = zip(*(_view(frame.views.get(name), clip) for name in clip.views), strict=True)
        stacked = Cameras(
            torch.stack([each.intrinsics for each in cameras]),
            torch.stack([each.world_from_camera for each in cameras]),
        )
        yield _Seen(number, torch.stack(pictures), stacked, torch.tensor(there))


def _view(view: View | None, clip: Clip) -> tuple[UInt8[Tensor, "3 h w"], Cameras]:
    if view is None:
        black = torch.full((3, *clip.size), 128, dtype=torch.uint8)  # about zero in [-1, 1]
        return black, Cameras(torch.eye(3), torch.eye(4))
    fit = CropResize((view.image.shape[0], view.image.shape[1]), clip.size)
    picture = fit.images(torch.from_numpy(view.image).permute(2, 0, 1)).round().to(torch.uint8)
    matrices = (torch.from_numpy(each).float() for each in (view.intrinsics, view.world_from_camera))
    return picture, fit.cameras(Cameras(*matrices))


def _step(episode: Episode, clip: Clip) -> int:
    """Recorded frames from one frame of the clip to the next."""
    step = episode.hz * clip.seconds_per_frame
    if abs(step - round(step)) > 1e-3 or round(step) < 1:
        raise InvalidValue(
            f"episode {episode.key!r} has {episode.hz:g} frames a second, the model's clip "
            f"{1 / clip.seconds_per_frame:g}; the former must be a multiple of the latter: resample it"
        )
    return round(step)


def _windows(seen: Iterable[T], frames: int, step: int) -> Iterator[list[T]]:
    """Clips that cover a recording, as soon as their frames are there.

    A pass takes every `step`-th frame. Its last clip reaches back where too few are left for a whole one;
    passes shorter than a clip repeat their last frame.
    """
    passes = [deque[T](maxlen=frames) for _ in range(step)]
    count = 0
    for each in seen:
        of_pass = passes[count % step]
        of_pass.append(each)
        if (count // step + 1) % frames == 0:
            yield list(of_pass)
        count += 1
    for phase, of_pass in enumerate(passes[:count]):
        if len(range(phase, count, step)) % frames:
            yield [*of_pass, *[of_pass[-1]] * (frames - len(of_pass))]


def _batches(windows: Iterable[T], size: int) -> Iterator[list[T]]:
    """So many windows at a time."""
    iterator = iter(windows)
    while batch := list(islice(iterator, size)):
        yield batch
