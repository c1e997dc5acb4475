"""Errors while data are read: which of them are the machine's, and their text."""

import csv
import errno
import struct
import zipfile
import zlib
from pickle import UnpicklingError
from tarfile import TarError

from av import FFmpegError
from PIL.Image import DecompressionBombError

from ai_wam.errors import CannotContinue, UserError

FORMAT_FAULTS: tuple[type[Exception], ...] = (
    ValueError, LookupError, ArithmeticError, EOFError, csv.Error, struct.error, zipfile.BadZipFile,
    zlib.error, TarError, UnpicklingError, FFmpegError, DecompressionBombError,
)  # fmt: skip
"""Of bytes that are not what their format says."""

DATA_FAULTS: tuple[type[Exception], ...] = (*FORMAT_FAULTS, UserError, OSError, RecursionError)
"""Of one recording or sample, by any reader: the next one may be sound. Others are faults of a program."""

_LONGEST = 2000  # characters of a fault: what is refused may be quoted whole
_OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def of_machine(error: BaseException) -> bool:
    """Whether the machine or its installation is the cause, so that the next recording would fail, too."""
    if isinstance(error, CannotContinue | ImportError):
        return True
    return isinstance(error, OSError) and error.errno in _OF_MACHINE


def fault(error: BaseException) -> str:
    """An exception's message; its class too where the message is no sentence by itself."""
    text = str(error)
    if not text or not isinstance(error, UserError | ValueError | OSError):
        text = f"{type(error).__name__}: {text}"
    text = text.encode("utf-8", "backslashreplace").decode()  # names of files may be no UTF-8
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
