"""Errors of commands: one sentence and an exit status.

Shown as a sentence is what a person or a machine causes: an `ai_wam.errors.UserError`, an error of the
operating system, memory that is used up, Ctrl-C. Any other exception is a fault of this project and keeps its
traceback; with AI_WAM_TRACEBACK=1 in the environment every traceback is shown.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ai_wam.cli.signals import received
from ai_wam.errors import UserError
from ai_wam.utils.class_paths import class_path

SWITCH = "AI_WAM_TRACEBACK"
_FAILED, _USAGE = 1, 2
_LONGEST = 10_000  # characters of a message; lists of what differs have a few thousand
_MAKE_ROOM = "make room and run the same command again"
_FAILING = "look after the disk or the network folder, then run the same command again"
_ANOTHER = "name a place where you may read and write"
_WAYS_OUT = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EIO: _FAILING,
    errno.ESTALE: _FAILING,
    errno.EACCES: _ANOTHER,
    errno.EPERM: _ANOTHER,
    errno.EROFS: _ANOTHER,
    errno.ENOTDIR: "a file stands where a folder is expected; name another place",
    errno.EISDIR: "this is a folder; name a file",
    errno.EMFILE: "raise the number of open files with `ulimit -n`, or use fewer workers",
}
# Errors of libraries that say what is wrong with their input, by module and name: looked at, never imported.
_FOREIGN = {
    "argparse.ArgumentError",
    "httpx.HTTPError",
    "huggingface_hub.errors.HfHubHTTPError",
    "lightning.fabric.utilities.exceptions.MisconfigurationException",
    "requests.exceptions.RequestException",
    "safetensors._safetensors_rust.SafetensorError",
    "safetensors_rust.SafetensorError",
    "yaml.error.YAMLError",
}
_IN_WORKER = re.compile(r"Caught \w+ in [^\n]+\nOriginal Traceback")  # torch's text of a data worker's error
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch's RuntimeError
_NUMBER = re.compile(r"^\[Errno \d+\] ")


class UsageError(UserError):
    """Words of a command line, or settings in its YAML files, that no parser accepts."""


class Ended(SystemExit):
    """Exit of a command whose message was printed.

    Args:
        message: as it was printed.
        status: of the process.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.code = status


@contextmanager
def one_sentence(command: str, kept: str = "") -> Iterator[None]:
    """Turn an error that is no fault of this project into the last line of the process.

    Args:
        command: of `ai-wam`, with which the sentence begins.
        kept: what of an interrupted command is kept and how it is resumed.

    Raises:
        SystemExit: in place of the error.
    """
    try:
        yield
    except BaseException as error:
        if (number := received(error)) is not None:
            status = 128 + number  # as shells report it
            found: str | None = "; ".join(filter(None, ["interrupted", kept]))
        elif isinstance(error, UsageError):
            status, found = _USAGE, f"{error} (`ai-wam {command} --help` lists the options)"
        elif isinstance(error, Exception):
            status, found = _FAILED, sentence(error)
        else:
            raise
        if found is None or os.environ.get(SWITCH):
            raise
        message = f"ai-wam {command}: {_bounded(found)}"
        with suppress(OSError):  # of a closed or full stderr; the status is left to say it
            print(message, file=sys.stderr)
        raise Ended(message, status) from None


def _bounded(text: str) -> str:
    """The beginning and the end of a long message, which may quote megabytes."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def sentence(error: BaseException) -> str | None:
    """The sentence for an error or its cause; None for a fault of this project."""
    found = (_of_machine(each) or _of_library(each) for each in _chain(error))
    return refusal(error) or next(filter(None, found), None)


def raised_on_purpose(error: BaseException | None) -> UserError | None:
    """The first `UserError` among an error and what it was raised from."""
    return next((each for each in _chain(error) if isinstance(each, UserError)), None)


def refusal(error: BaseException | None) -> str | None:
    """The message of what was raised on purpose."""
    found = raised_on_purpose(error)
    return None if found is None else _text(found)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; Ray's copy of a worker's error has the original as `cause`."""
    seen = set[int]()  # `raise error from error` makes a ring
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        original = getattr(error, "cause", None)
        error = original if isinstance(original, BaseException) else error
        yield error
        error = error.__cause__


def _of_machine(error: BaseException) -> str | None:
    """The message of an error of the operating system or of memory that is used up."""
    text = _text(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in text:
        return f"out of memory ({text.splitlines()[0] if text else 'no more is free'}); use smaller sizes"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        return f"{' '.join(text.split())} (often out of memory: use fewer data workers or smaller batches)"
    if not isinstance(error, OSError):
        return None
    if error.errno is None:
        return text if _IN_WORKER.match(str(error)) else None
    return text if error.filename is not None or error.errno in _WAYS_OUT else None


def _of_library(error: BaseException) -> str | None:
    """The message of a library that refuses its input."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if not names & _FOREIGN:
        return None
    text = " ".join(_text(error).split())
    return f"{text}; {_MAKE_ROOM}" if os.strerror(errno.ENOSPC) in text else text


def _text(error: BaseException) -> str:
    """The message, as it was before torch put a worker's traceback before it, without error numbers."""
    if isinstance(error, OSError) and error.errno is not None:
        words = str(error.strerror or os.strerror(error.errno))
        named = error.filename if error.filename2 is None else error.filename2  # of a copy, where it goes
        place = "" if named is None else f": {named!r}"
        way = "" if isinstance(error, UserError) else _WAYS_OUT.get(error.errno, "")
        return words + place + (f"; {way}" if way else "")
    text = str(error)
    if _IN_WORKER.match(text):
        for name in (class_path(error), type(error).__name__):
            before, found, after = text.rpartition(f"\n{name}: ")
            if found and before:
                return _NUMBER.sub("", after.strip())
    return text
