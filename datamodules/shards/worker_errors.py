"""Sends errors of workers to the main process with their class, message and causes.

Pickling an exception drops its cause, which often has the message for the user, and a class whose
constructor takes other arguments than the message cannot be unpickled at all.
"""

import pickle
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from ai_wam.errors import CannotContinue, UserError


class WorkerTraceback(Exception):
    """The traceback of a worker, as the last cause of its error."""


@dataclass(frozen=True)
class Failure:
    """A picklable error of a worker.

    Attributes:
        chain: the error and what it was raised from, each pickled.
        trace: the worker's traceback.
    """

    chain: tuple[bytes, ...]
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Pack an error that was just caught."""
        return cls(tuple(map(_pickled, _causes(error))), "".join(traceback.format_exception(error)))

    def error(self) -> BaseException:
        """The error again."""
        first, *causes = [*map(pickle.loads, self.chain), WorkerTraceback(f"in a worker:\n{self.trace}")]
        before: BaseException = first
        for cause in causes:
            before.__cause__ = before = cause
        return first


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()  # `raise error from error` makes a ring
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _pickled(error: BaseException) -> bytes:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # of any constructor; what is left is the message
        if isinstance(error, UserError):
            return pickle.dumps(CannotContinue(str(error)))
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data
