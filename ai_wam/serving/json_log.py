"""A log whose every line is one JSON value."""

import json
import time
from collections.abc import Callable
from typing import Any


class JsonLog:
    """Writes events as lines of JSON.

    Args:
        write: gets every line, without its end.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def __call__(self, event: str, **values: Any) -> None:
        """Write a line with the time (seconds since 1970), the event's name and its values."""
        self._write(json.dumps({"time": round(time.time(), 3), "event": event, **values}))
