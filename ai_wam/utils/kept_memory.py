"""Memory that tensors gave back stays with the process, where the C library is glibc."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
_LARGEST, _KEPT = 2**30, 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> bool:
    """Keep up to 2 GB of freed memory for the next use; returns whether the C library can.

    glibc gives large blocks back to the system when they are freed, and the system clears every page again at
    the next use. Models ask for the same large blocks in every step. Blocks above 1 GB are still given back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: on Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
