"""A source that takes its time, and one of whose episodes cannot be read."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ai_wam.episodes import Episode
from ai_wam.errors import InvalidValue
from benchmarks.speed.moving_squares import MovingSquares


@dataclass(frozen=True)
class SlowSquares(MovingSquares):
    """Squares of which every episode takes `seconds`, and episode `broken` is refused.

    A process that reads one leaves a file `reader-PID` in the folder `begun`, if that is given.
    """

    seconds: float = 0.0
    broken: int = -1
    begun: str = ""

    def __getitem__(self, index: int) -> Episode:
        if self.begun:
            Path(self.begun, f"reader-{os.getpid()}").touch()
        time.sleep(self.seconds)
        if index == self.broken:
            raise InvalidValue(f"episode {index} is broken; record it again")
        return super().__getitem__(index)
