"""Atomic file writes: a file appears complete or not at all, on this machine or in a store of fsspec.

On this machine they are written under another name in the same folder, then renamed; in a store they are
written here and sent as a whole.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from upath import UPath

from ai_wam.errors import FileTrouble, InvalidValue

AnyPath: TypeAlias = Path | UPath  # UPath is pathlib's interface to s3://, gs:// and the rest of fsspec
_NOTHING = ": nothing was written; make room and run the same command again"
PARTIAL = ".partial"  # how names of unfinished files end
_LONGEST = 200  # bytes; file systems allow 255, and unfinished files have longer names


def as_path(name: str | AnyPath) -> AnyPath:
    """A path of this machine as pathlib has it, an address such as s3://bucket/folder as a UPath.

    Raises:
        ImportError: an address whose driver is not installed; the message names it.
    """
    if not isinstance(name, str):
        return name
    return UPath(name) if "://" in name else Path(name)


def inside(folder: AnyPath, name: str) -> AnyPath:
    """The place of a name in a folder, for names that come from data.

    Args:
        folder: where the file belongs.
        name: of a file in it, or in folders of it, such as "episode-1/front.mp4".

    Raises:
        ValueError: a name that leads out of the folder, or that is no file in it.
    """
    parts = name.split("/")
    if "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise InvalidValue(
            f"{name!r} is no name of a file in {folder}: it must not be empty, begin with '/', or hold '.', "
            "'..', a backslash or a NUL as a part; rename it where it was recorded"
        )
    return folder / str(PurePosixPath(*parts))


def publish(file: Path, path: AnyPath) -> None:
    """Move a finished file to its final name, atomically."""
    if isinstance(path, Path):
        os.chmod(file, 0o644)  # temporary files are private
        _sync(file)  # or a crash of the machine could leave the new name with nothing behind it
        os.replace(file, path)
        _sync(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.fs.put_file(str(file), path.path)
    file.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_name(name: str, what: str) -> str:
    """The name, if it is valid for a file or a folder.

    Args:
        name: what was given.
        what: what it is the name of, for the error.

    Raises:
        ValueError: a path, which could lead out of the folder, or longer than names of files may be.
    """
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise InvalidValue(
            f"{what} is called {name!r:.100}, which is a path; it becomes the name of a file: give it a name "
            "without '/', '\\' and '..'"
        )
    if len(name.encode()) > _LONGEST:
        raise InvalidValue(
            f"{what} is called {name[:20]!r}..., {len(name.encode())} bytes; it becomes the name of a file: "
            f"give it a name of at most {_LONGEST}"
        )
    return name


@contextmanager
def atomic_file(path: str | AnyPath) -> Iterator[BinaryIO]:
    """A stream to a temporary file, which is renamed to `path` when the block ends without an error.

    The folder is made if missing. An older file of that name stays until the new one is complete.

    Raises:
        OSError: the disk is full or gone; the message names the path.
    """
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = str(path.parent) if isinstance(path, Path) else None
    handle, name = tempfile.mkstemp(dir=work, prefix=f"{path.name}.", suffix=PARTIAL)
    try:
        with open(handle, "wb") as stream:
            yield stream
        publish(Path(name), path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:  # writes do not know where they go
            raise unwritten(error, path) from error
        raise


def unwritten(error: OSError, path: str | AnyPath) -> FileTrouble:
    """The error of a write that failed, with its path and the way out."""
    said = str(error.strerror or error).removesuffix(
        _NOTHING
    )  # of a file in a folder that is not there either
    what = f"{said}{_NOTHING}"
    return FileTrouble(error.errno, what, str(path))


def write_text(path: str | AnyPath, text: str) -> None:
    """Write a text file, UTF-8."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def write_json(path: str | AnyPath, content: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file; numbers must be finite, so that every reader of JSON can read it."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
