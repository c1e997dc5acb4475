"""A source that takes its process with it, once."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from ai_wam.episodes import Episode
from benchmarks.speed.moving_squares import MovingSquares


@dataclass(frozen=True)
class FatalSquares(MovingSquares):
    """Squares whose third episode kills the process that draws it, the first time.

    Attributes:
        marker: file that is left behind when it did.
    """

    marker: str = ""

    def __getitem__(self, index: int) -> Episode:
        marker = Path(self.marker)
        if index == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
