"""Bad input ends in one sentence; what nobody expected keeps its traceback.

An error that this project's own code raised on purpose says all there is to know: what, its value, the limit
and the way out. With AI_WAM_TRACEBACK=1 in the environment its traceback is shown too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dis import opmap
from types import TracebackType

SWITCH = "AI_WAM_TRACEBACK"
_EXPECTED = (ValueError, TypeError, OSError, ImportError)
_OURS = ("ai_wam", "backbones", "tasks", "datamodules", "benchmarks")


@contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """Turn an error raised on purpose into the process's last words.

    Args:
        command: of `ai-wam`, which the sentence begins with.

    Raises:
        SystemExit: in its place.
    """
    try:
        yield
    except Exception as error:
        found = raised_on_purpose(error)
        if found is None or os.environ.get(SWITCH):
            raise
        raise SystemExit(f"ai-wam {command}: {found}") from None


def raised_on_purpose(error: BaseException | None) -> BaseException | None:
    """The error, or what it was raised from, if one of them comes from a `raise` of this project."""
    while error is not None:
        if isinstance(error, _EXPECTED) and _is_ours(error.__traceback__):
            return error
        error = error.__cause__
    return None


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is ours, and stopped at a `raise`."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in _OURS and frame.f_code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]
