"""What `ai-wam view` shows: frames along time, and the chunks that a policy predicted in between."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ai_wam.episodes import Frame


@dataclass(frozen=True)
class ShownFrame:
    """One instant.

    Attributes:
        frame: pictures, cameras and pose.
        generated: further pictures by view and by name, of the size of the view's picture or a multiple of
            it, such as the action image that a policy generated for this instant.
    """

    frame: Frame
    generated: Mapping[str, Mapping[str, UInt8[np.ndarray, "h w 3"]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictedChunk:
    """Actions that a policy predicted at once.

    Attributes:
        seconds: when they were predicted.
        dt: seconds between two actions; the first one is due at `seconds + dt`.
        actions: poses and openness in the world frame, metres.
        valid: False where the pose was not measured.
        position_std: standard deviation of the position per axis, metres; None where it is not known.
    """

    seconds: float
    dt: float
    actions: Float[np.ndarray, "a 8"]
    valid: Bool[np.ndarray, "a"]
    position_std: Float[np.ndarray, "a"] | None = None

    @property
    def due(self) -> Float[np.ndarray, "a"]:
        """The time of every action, seconds."""
        return self.seconds + self.dt * np.arange(1, len(self.actions) + 1)


@dataclass(frozen=True)
class Scene:
    """One episode, trial or sample.

    Attributes:
        name: unique among the scenes shown together.
        instruction: what was to be done.
        hz: steps per second: frames of a recording, control steps of a trial.
        frames: in time order; may be a generator, read once.
        count: number of frames.
        chunks: predicted in the scene, in time order.
    """

    name: str
    instruction: str
    hz: float
    frames: Iterable[ShownFrame]
    count: int
    chunks: tuple[PredictedChunk, ...] = ()
