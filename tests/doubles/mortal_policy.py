"""A policy that takes its process with it, once."""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.policies import HoldStill


class Mortal(HoldStill):
    """Dies with its second trial unless it did so before.

    Args:
        grave: file that says that it did.
    """

    def __init__(self, grave: str) -> None:
        super().__init__()
        self.grave, self.begun = grave, 0

    def reset(self, episodes: Sequence[str]) -> None:
        """Count trials."""
        self.begun += len(episodes)
        if self.begun > 1 and not Path(self.grave).exists():
            Path(self.grave).touch()
            os._exit(9)
