"""Files that are there whole or not at all, on this machine or in a store that fsspec knows.

On this machine they are written under another name in the same folder, then renamed; in a store they are
written here and sent as a whole.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from upath import UPath

AnyPath: TypeAlias = Path | UPath  # UPath is pathlib's interface to s3://, gs:// and the rest of fsspec
PARTIAL = ".partial"  # how names of unfinished files end


def as_path(name: str | AnyPath) -> AnyPath:
    """A path of this machine as pathlib has it, an address such as s3://bucket/folder as a UPath.

    Raises:
        ImportError: an address whose driver is not installed; the message names it.
    """
    if not isinstance(name, str):
        return name
    return UPath(name) if "://" in name else Path(name)


def publish(file: Path, path: AnyPath) -> None:
    """Give a finished file its name, all at once; the file itself is gone afterwards."""
    if isinstance(path, Path):
        os.chmod(file, 0o644)  # temporary files are private
        os.replace(file, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.fs.put_file(str(file), path.path)
    file.unlink()


@contextmanager
def whole_file(path: str | AnyPath) -> Iterator[BinaryIO]:
    """A stream whose bytes appear under `path` when the block ends without an error; otherwise nothing does.

    The folder is made if missing. An older file of that name stays until the new one is complete.
    """
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = str(path.parent) if isinstance(path, Path) else None
    handle, name = tempfile.mkstemp(dir=work, prefix=f"{path.name}.", suffix=PARTIAL)
    try:
        with open(handle, "wb") as stream:
            yield stream
        publish(Path(name), path)
    except BaseException:
        os.unlink(name)
        raise


def write_text(path: str | AnyPath, text: str) -> None:
    """Write a text file, UTF-8."""
    with whole_file(path) as stream:
        stream.write(text.encode())


def write_json(path: str | AnyPath, content: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file; numbers must be finite, so that every reader of JSON can read it."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
