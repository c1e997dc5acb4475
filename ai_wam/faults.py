"""What goes wrong while data are read: the exceptions of readers, and their words."""

import errno
import struct
import zipfile
import zlib
from pickle import UnpicklingError
from tarfile import TarError

from av import FFmpegError
from PIL.Image import DecompressionBombError

FORMAT_FAULTS: tuple[type[Exception], ...] = (
    ValueError, LookupError, ArithmeticError, EOFError, struct.error, zipfile.BadZipFile, zlib.error,
    TarError, UnpicklingError, FFmpegError, DecompressionBombError,
)  # fmt: skip
"""Of bytes that are not what their format says."""

DATA_FAULTS: tuple[type[Exception], ...] = (*FORMAT_FAULTS, TypeError, AttributeError, OSError, RuntimeError)
"""Of one recording or sample, by whichever reader: the next one may be sound."""

_OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def of_machine(error: BaseException) -> bool:
    """Whether the machine is at fault, so that the next recording would fail likewise."""
    return isinstance(error, OSError) and error.errno in _OF_MACHINE


def fault(error: BaseException) -> str:
    """An exception's message; its class too where the message is no sentence by itself."""
    text = str(error)
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
