"""One recording at a time in a folder: an advisory lock on the folder itself, gone when its process is."""

import fcntl
import os
from pathlib import Path

from ai_wam.files.atomic import AnyPath
from datamodules.shards.format import ShardError

_held: dict[Path, int] = {}  # descriptors by folder; a process may open a folder again that it holds


def lock_folder(folder: AnyPath) -> None:
    """Take the folder for this process; stores that are no file systems of this machine know no locks.

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
            "command again, which goes on where it ended. Or write into another folder"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    _held[place] = descriptor


def unlock_folder(folder: AnyPath) -> None:
    """Give the folder back, if this process holds it."""
    if isinstance(folder, Path) and (descriptor := _held.pop(folder.resolve(), None)) is not None:
        os.close(descriptor)
