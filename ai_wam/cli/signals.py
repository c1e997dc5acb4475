"""Ctrl-C and SIGTERM from the first moment of a command, in its own process only."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType

_received: int | None = None  # the signal that is to end the command


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
    global _received
    _received = None
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main one only
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    hook, sys.unraisablehook = sys.unraisablehook, _again
    try:
        yield
    finally:
        if _received is None:
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_swallowed() -> None:
    """Raise a signal's exception again that a library has swallowed, as imports with a bare `except` do."""
    if _received is not None:
        _end(_received, None)


def received(error: BaseException) -> int | None:
    """The signal that an error follows from: itself, or as what a library made of it."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(error, Terminated):
        return signal.SIGTERM
    # An import that is interrupted may fail in any way, and Lightning exits with 1.
    finished = isinstance(error, SystemExit) and error.code in (0, None)
    return None if finished else _received


def _end(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Where Python drops exceptions, as in `__del__`, an interruption is sent again a moment later.

    What else is dropped while an interrupted process ends, such as loaders that miss their workers, follows
    from that and is not shown.
    """
    if _received is None:
        sys.__unraisablehook__(unraisable)
    elif issubclass(unraisable.exc_type, KeyboardInterrupt | Terminated):
        timer = Timer(0.05, _send_again, (_received,))
        timer.daemon = True
        timer.start()


def _send_again(number: int) -> None:
    if signal.getsignal(number) is _end:  # the command still runs
        os.kill(os.getpid(), number)


def _in_child() -> None:
    """Forked workers of data loaders leave Ctrl-C to their parent, which ends them by SIGTERM."""
    for number, usual in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _end:
            signal.signal(number, usual)


os.register_at_fork(after_in_child=_in_child)
