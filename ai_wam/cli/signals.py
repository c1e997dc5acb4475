"""Ctrl-C and SIGTERM from the first moment of a command, in its own process only."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_interrupted = False


class Terminated(SystemExit):
    """Raised where the process is when SIGTERM arrives, so that open files are closed; the status is 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` as Ctrl-C raises KeyboardInterrupt.

    A command may install other handlers meanwhile; those from before are back afterwards. Ignored signals
    stay ignored, as `nohup` asks for.
    """
    global _interrupted
    _interrupted = False
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main one only
        yield
        return
    ours = {signal.SIGINT: _interrupt, signal.SIGTERM: _terminate}
    before = {number: signal.getsignal(number) for number in ours}
    for number in ours:
        if before[number] in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, ours[number])
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def was_interrupted(error: BaseException) -> bool:
    """Whether an error is, or follows from, Ctrl-C or SIGTERM."""
    # An import that is interrupted may fail in another way, and Lightning exits with 1.
    return isinstance(error, KeyboardInterrupt | Terminated) or (_interrupted and not _finished(error))


def _finished(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (0, None)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _as_usual() -> None:
    """Forked workers of data loaders are ended by their parent, without a word."""
    for number, ours, usual in (
        (signal.SIGINT, _interrupt, signal.default_int_handler),
        (signal.SIGTERM, _terminate, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is ours:
            signal.signal(number, usual)


os.register_at_fork(after_in_child=_as_usual)
