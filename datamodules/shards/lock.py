"""An advisory lock on a folder, so that one process at a time writes into it; it ends with its process."""

import fcntl
import os
from pathlib import Path

from ai_wam.files.atomic import AnyPath
from datamodules.shards.format import ShardError

_held: dict[Path, int] = {}  # descriptors by folder; a process may open a folder again that it holds


def lock_folder(folder: AnyPath) -> None:
    """Lock the folder for this process; folders in a store are not locked.

    Raises:
        ShardError: another process is writing into it.
    """
    if not isinstance(folder, Path) or (place := folder.resolve()) in _held:
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ShardError(
            f"{folder}: another run is writing into this folder; wait for it or stop it, then run the same "
            "command again, which resumes where it ended. Or write into another folder"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    _held[place] = descriptor


def unlock_folder(folder: AnyPath) -> None:
    """Release the lock, if this process holds it."""
    if isinstance(folder, Path) and (descriptor := _held.pop(folder.resolve(), None)) is not None:
        os.close(descriptor)
