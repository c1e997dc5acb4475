"""Recorded episodes as sources give them: frames of calibrated pictures, without batches or torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ai_wam.errors import InvalidType, InvalidValue
from ai_wam.utils.brief_repr import POSE, BriefRepr


@dataclass(frozen=True, repr=False)
class View(BriefRepr):
    """One calibrated picture.

    Attributes:
        image: RGB, row 0 at the top.
        intrinsics: K in pixels of this image.
        world_from_camera: rigid 4 x 4, metres, OpenCV axes.
        depth: metres along the camera's forward axis; None where it was not recorded.
    """

    units: ClassVar[Mapping[str, str]] = {
        "image": "RGB",
        "intrinsics": "pixels",
        "world_from_camera": "metres, OpenCV axes",
        "depth": "metres",
    }
    image: UInt8[np.ndarray, "h w 3"]
    intrinsics: Float[np.ndarray, "3 3"]
    world_from_camera: Float[np.ndarray, "4 4"]
    depth: Float[np.ndarray, "h w"] | None = None


@dataclass(frozen=True, repr=False)
class Frame(BriefRepr):
    """One instant of one world, as a simulator, a robot or a reader gives it: no batch, no torch.

    Attributes:
        views: pictures by camera name.
        action: where the tool is now and how open the gripper is now; None where it was not recorded.
        seconds: time since the episode began.
    """

    units: ClassVar[Mapping[str, str]] = {"action": POSE}
    views: Mapping[str, View]
    action: Float[np.ndarray, "8"] | None
    seconds: float


@dataclass(frozen=True, repr=False)
class Labels(BriefRepr):
    """Quality of labeled actions, frame by frame.

    Attributes:
        valid: whether the pose was measured; it is interpolated where not.
        confidence: of the decoder, 1 = exact, 0 = invalid.
        disagreement_px: root mean square distance in pixels of the model's pictures between where the views
            show the tool's three points and where the pose puts them; NaN where invalid.
    """

    valid: Bool[np.ndarray, "t"]
    confidence: Float[np.ndarray, "t"]
    disagreement_px: Float[np.ndarray, "t"]

    def check(self, frames: int) -> None:
        """Refuse what cannot be labels of so many frames.

        Raises:
            ValueError: other lengths, or a confidence outside [0, 1].
        """
        lengths = {name: len(values) for name, values in vars(self).items()}
        if set(lengths.values()) != {frames}:
            raise InvalidValue(f"labels have {lengths} frames, the episode has {frames}")
        outside = np.flatnonzero(~((self.confidence >= 0) & (self.confidence <= 1)))
        if len(outside):
            frame = outside[0]
            raise InvalidValue(
                f"labels: confidence must lie in [0, 1], got {self.confidence[frame]} at frame {frame} "
                f"({len(outside)} frames in all)"
            )


@dataclass(frozen=True)
class Episode:
    """A recorded episode.

    Attributes:
        key: its name, unique in the source; letters, digits, "-" and "_" only.
        frames: in time order, `1 / hz` seconds apart; may be a generator, read once.
        instructions: phrasings of what was to be done, at least one (the empty string where none is known).
        hz: frames per second of the recording.
        provenance: where it comes from (JSON values): source, task, variation, seed, licence ...
        labels: quality of actions that a model labeled; None for measured actions.
    """

    key: str
    frames: Iterable[Frame]
    instructions: tuple[str, ...]
    hz: float
    provenance: Mapping[str, Any]
    labels: Labels | None = None

    def __post_init__(self) -> None:
        if isinstance(self.instructions, str):
            raise InvalidType(
                f"episode {self.key}: instructions are phrasings, a tuple of texts; got the text "
                f"{self.instructions!r}: give ({self.instructions!r},)"
            )


@dataclass(frozen=True)
class SourceCard:
    """Facts about a data set for its data card; a source may have one as its attribute `card`.

    Attributes:
        title: its name for humans.
        licence: of the data, as the hub calls it, such as cc-by-4.0.
        homepage: where it is described.
        citation: what to cite.
        defects: known defects, one sentence each.
    """

    title: str = ""
    licence: str = "unknown"
    homepage: str = ""
    citation: str = ""
    defects: tuple[str, ...] = ()


@runtime_checkable
class EpisodeSource(Protocol):
    """Anything that gives recorded episodes by number: a demonstrating simulator or a reader of files.

    An episode depends on its number alone, so that any worker can make any of them, and again.
    """

    def __len__(self) -> int:
        """Number of episodes."""
        ...

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`, 0 <= index < len."""
        ...
