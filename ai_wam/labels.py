"""How sure a model was of actions that it read off a recording, frame by frame."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ai_wam.errors import InvalidValue


@dataclass(frozen=True)
class Labels:
    """What goes with labeled actions.

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
