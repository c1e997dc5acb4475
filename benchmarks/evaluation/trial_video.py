"""The video of a trial for the report: the rollout next to what the policy generated, in one small file."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.image
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ai_wam.cameras import CropResize
from ai_wam.episodes import Frame
from ai_wam.types import Clip
from ai_wam.video import VideoEncoding, overlay, to_uint8, write_video
from benchmarks.evaluation.command_schedule import PlannedActions
from benchmarks.evaluation.trial_recording import TrialRecorder

_SHORT_SIDE = (160, 224)  # pixels; smaller panels are enlarged so that 4:2:0 does not smear a blob's colour
_ENCODING = VideoEncoding(crf=26, browser=True, gop=50)
_LINE = 4  # pixels; even, as the video's size must be
_SECONDS_AT_END = 0.8  # how long the last picture stays, so that the end of a looping video can be seen

SEEN = "seen.png"  # beside results.json: what the policy saw first


@dataclass(frozen=True)
class TrialVideo:
    """A trial's video: one row per view, one column per panel.

    Attributes:
        panels: names of the columns.
        views: names of the rows.
        mp4: the video file, which browsers play, in real time.
        poster: PNG of its last picture.
        first: PNG of the views as they were in the beginning.
        recording: the numbers of `benchmarks.evaluation.trial_recording`, for `ai-wam view`.
    """

    panels: tuple[str, ...]
    views: tuple[str, ...]
    mp4: bytes
    poster: bytes
    first: bytes = b""
    recording: bytes = b""


class VideoRecorder:
    """Collects the pictures of a running trial into a `TrialVideo`.

    Args:
        clip: the policy's views and size; rollout pictures are cropped as the policy observes them.
        hz: pictures per simulated second.
        control_hz: control steps per second.
    """

    def __init__(self, clip: Clip, hz: float, control_hz: float) -> None:
        self._clip, self._hz, self._control_hz = clip, hz, control_hz
        h, w = clip.size
        scale = float(np.clip(min(h, w), *_SHORT_SIDE)) / min(h, w)
        self._panel = (2 * round(h * scale / 2), 2 * round(w * scale / 2))
        self._generated: Mapping[str, Float[Tensor, "v 3 t h w"]] = {}
        self._actions, self._dt = 0, 1.0
        self._numbers = TrialRecorder(clip.views, self._panel)
        self._rows: dict[str, list[Float[Tensor, "v 3 h w"]]] = {}
        self._length = 0

    def begin_chunk(
        self, generated: Mapping[str, Float[Tensor, "v 3 t h w"]], planned: PlannedActions, seconds: float
    ) -> None:
        """Take what the policy predicted for a new chunk.

        Args:
            generated: videos in [-1, 1], by name.
            planned: the chunk's actions.
            seconds: time since the trial began.
        """
        self._generated, self._actions, self._dt = generated, len(planned.actions), planned.dt
        self._numbers.begin_chunk(seconds, planned)

    def add(self, frame: Frame, since_plan: float) -> None:
        """Add a picture of the world, and what the policy had generated for that time.

        Args:
            frame: the world now.
            since_plan: seconds since the chunk was planned.
        """
        self._numbers.add(frame)
        rollout = torch.stack([self._view(frame, name) for name in self._clip.views])
        self._append("rollout", rollout)
        for name, video in self._generated.items():
            # A video of the chunk starts with the current frame: one frame more than there are actions.
            first = self._actions + 1 - video.shape[2]
            index = min(max(round(since_plan / self._dt) - first, 0), video.shape[2] - 1)
            self._append(name, self._fit(video[:, :, index]))
        self._length += 1

    def finish(self, prompt: str) -> TrialVideo:
        """The video of all pictures added, in a trial of this instruction."""
        rows = {name: torch.stack(self._filled(pictures), dim=2) for name, pictures in self._rows.items()}
        panels = {"rollout": _pictures(rows["rollout"])}
        if "action_images" in rows:
            panels["generated actions"] = _pictures(rows["action_images"])
            panels["overlay"] = overlay(rows["rollout"].movedim(1, 2), rows["action_images"].movedim(1, 2))
        if "observation" in rows:
            panels["generated video"] = _pictures(rows["observation"])
        sheet = _sheet(list(panels.values()))
        frames = np.concatenate([sheet, np.repeat(sheet[-1:], round(_SECONDS_AT_END * self._hz), axis=0)])
        mp4 = write_video(frames, self._hz, _ENCODING)
        first = np.concatenate(list(panels["rollout"][:, 0]), axis=1)
        recording = self._numbers.finish(mp4, tuple(panels), _LINE, self._control_hz, prompt)
        return TrialVideo(tuple(panels), self._clip.views, mp4, _png(sheet[-1]), _png(first), recording)

    def _view(self, frame: Frame, name: str) -> Float[Tensor, "3 h w"]:
        if name not in frame.views:
            return torch.full((3, *self._panel), -1.0)
        image = frame.views[name].image
        # The crop depends on the aspect ratio alone, so it is the policy's, at the picture's full detail.
        crop = CropResize((image.shape[0], image.shape[1]), self._panel)
        picture: Tensor = crop.images(torch.from_numpy(image.copy()).permute(2, 0, 1)) / 127.5 - 1
        return picture.clamp(-1, 1)

    def _fit(self, pictures: Float[Tensor, "v 3 h w"]) -> Float[Tensor, "v 3 ph pw"]:
        resized = functional.interpolate(pictures.float().cpu(), self._panel, mode="bilinear", antialias=True)
        return resized.clamp(-1, 1)

    def _append(self, name: str, pictures: Float[Tensor, "v 3 h w"]) -> None:
        row = self._rows.setdefault(name, [])
        row.extend([torch.full_like(pictures, -1.0)] * (self._length - len(row)))
        row.append(pictures)

    def _filled(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """A panel's pictures, black after the last one that the policy generated."""
        return [*pictures, *[torch.full_like(pictures[0], -1.0)] * (self._length - len(pictures))]


def _pictures(video: Float[Tensor, "v 3 t h w"]) -> UInt8[np.ndarray, "v t h w 3"]:
    return to_uint8(video.movedim(1, 2))


def _sheet(panels: Sequence[np.ndarray]) -> UInt8[np.ndarray, "t gh gw 3"]:
    """Frames of panels "v t h w 3" side by side, views below one another, a dark line between any two."""
    line = ((0, 0), (0, 0), (0, _LINE), (0, _LINE), (0, 0))
    columns = np.concatenate([np.pad(panel, line) for panel in panels], axis=3)
    sheet: UInt8[np.ndarray, "t gh gw 3"] = np.concatenate(list(columns), axis=1)
    return sheet[:, :-_LINE, :-_LINE]


def _png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, picture[::2, ::2], format="png")
    return buffer.getvalue()
