"""Files that are there whole or not at all: written under another name in the same folder, then renamed."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"  # how names of unfinished files end


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A stream whose bytes appear under `path` when the block ends without an error; otherwise nothing does.

    The folder is made if missing. An older file of that name stays until the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=PARTIAL)
    try:
        with open(handle, "wb") as stream:
            yield stream
        os.chmod(name, 0o644)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with whole_file(path) as stream:
        stream.write(text.encode())


def write_json(path: str | Path, content: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file; numbers must be finite, so that every reader of JSON can read it."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
