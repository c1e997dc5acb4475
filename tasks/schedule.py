"""The learning rate over a training run."""

import math
from typing import Literal


def rate(step: int, schedule: Literal["cosine", "constant"], warmup: int, steps: float) -> float:
    """Factor on the peak learning rate: linear warm-up, then constant or a cosine down to a hundredth.

    Args:
        step: optimizer steps made.
        schedule: which of the two.
        warmup: steps of warm-up.
        steps: steps of the whole run.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    if schedule == "constant":
        return warm
    progress = min(1.0, step / max(1, steps))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
