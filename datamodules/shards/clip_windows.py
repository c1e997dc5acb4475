"""The windows of an episode: which recorded frames make up a sample."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from ai_wam.errors import InvalidValue
from ai_wam.types import Clip
from datamodules.shards.format import EpisodeEntry

Pad = Literal["hold", "none"]
_STEP_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Windows:
    """How windows are cut from episodes.

    Attributes:
        clip: frames, stride, size and views.
        pad: "hold": a window may start at any frame, past the end the last frame repeats (the robot holds
            still); "none": only windows inside the episode.
        dense: a window at every frame; otherwise one window after the other.
        every: of dense windows, so many frames from one to the next.
        least: recorded frames of the clip that a dense window has at least.
    """

    clip: Clip
    pad: Pad
    dense: bool
    every: int = 1
    least: int = 1

    def step(self, entry: EpisodeEntry) -> int:
        """Recorded frames from one frame of the clip to the next.

        Raises:
            ValueError: the episode's rate does not fit the clip's.
        """
        exact = self.clip.seconds_per_frame * entry.hz
        step = round(exact)
        if step < 1 or abs(exact - step) > _STEP_TOLERANCE * step:
            rate = 1 / self.clip.seconds_per_frame
            fitting = ", ".join(f"{k * rate:g}" for k in range(1, 7))
            raise InvalidValue(
                f"episode {entry.key!r} is recorded at {entry.hz:g} Hz, a clip of stride {self.clip.stride} "
                f"at {self.clip.control_hz:g} Hz needs a frame every {self.clip.seconds_per_frame:g} s: "
                f"every {exact:g}-th recorded frame. Recordings at {fitting} ... Hz fit; change clip.stride "
                "or clip.control_hz, or resample the recording."
            )
        return step

    def spacing(self, entry: EpisodeEntry) -> int:
        """Recorded frames from one window's start to the next one's."""
        return self.every if self.dense else (self.clip.frames - 1) * self.step(entry)

    def count(self, entry: EpisodeEntry) -> int:
        """Number of windows in an episode."""
        return int(self.counts(entry, np.array([entry.frames]))[0])

    def counts(self, entry: EpisodeEntry, frames: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Number of windows in episodes of an entry's rate and of these lengths."""
        least = self.least if self.dense else 1
        span = ((least if self.pad == "hold" else self.clip.frames) - 1) * self.step(entry)
        return np.maximum(0, -(-(frames - span) // self.spacing(entry)))

    def frames(self, entry: EpisodeEntry, window: int) -> list[int]:
        """Recorded frame of each frame of a window."""
        return [min(frame, entry.frames - 1) for frame in self._unclipped(entry, window)]

    def recorded(self, entry: EpisodeEntry, window: int) -> list[bool]:
        """Whether each frame of a window was recorded; past the end the last frame repeats."""
        return [frame < entry.frames for frame in self._unclipped(entry, window)]

    def _unclipped(self, entry: EpisodeEntry, window: int) -> range:
        """Frame numbers of a window, also past the episode's end."""
        start, step = window * self.spacing(entry), self.step(entry)
        return range(start, start + self.clip.frames * step, step)
