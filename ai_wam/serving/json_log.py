"""A log whose every line is one JSON value."""

import json
import logging
import time
import traceback
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


class LibraryLog(logging.Handler):
    """Writes what a library logs as events of its own.

    Args:
        log: gets them.
    """

    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its error's traceback."""
        error = record.exc_info[1] if record.exc_info else None
        trace = {} if error is None else {"trace": "".join(traceback.format_exception(error))}
        self._log("library", level=record.levelname, message=record.getMessage(), **trace)


def library_logger(log: JsonLog) -> logging.Logger:
    """A logger for a library, whose warnings and errors become lines of the log."""
    logger = logging.Logger("ai_wam.serving", logging.WARNING)
    logger.addHandler(LibraryLog(log))
    return logger
