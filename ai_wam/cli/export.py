"""`ai-wam export`: a folder of shards into the layout of another project."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from tqdm import tqdm

from ai_wam.episodes import Episode
from ai_wam.errors import ExistingFile, InvalidValue, UserError
from ai_wam.files.atomic import PARTIAL, AnyPath, as_path, unwritten
from ai_wam.files.read_errors import FORMAT_FAULTS, fault
from ai_wam.utils.counted import counted
from ai_wam.video import VideoEncoding
from datamodules.export.episode_choice import Episodes, chosen_episodes
from datamodules.reading.view_names import Views
from datamodules.shards.reader import ShardSet

Layout: TypeAlias = Literal["action_images", "lerobot"]
_MARK = ".ai-wam-export"  # in a folder that an export began, and may delete
_GOP: dict[Layout, int] = {"action_images": 12, "lerobot": 2}  # as each project encodes


@runtime_checkable
class Writer(Protocol):
    """The interface of a layout's writer; the folder gets its final name after `close`."""

    def write(self, episode: Episode) -> None:
        """Append an episode."""
        ...

    def close(self) -> None:
        """Write the files of the whole set."""
        ...


def export(
    shards: str,
    out: str,
    to: Layout,
    lossless: bool = False,
    browser: bool = False,
    views: Views = None,
    episodes: Episodes = None,
) -> None:
    """Write recorded episodes in the layout of another project.

    Args:
        shards: a folder that `ai-wam collect` or `convert` wrote.
        out: folder of the new data set, a path or an address such as s3://bucket/folder; must not exist. A
            store gets the files one by one when all are written.
        to: the layout; docs/sources.md describes each.
        lossless: keep every pixel exactly, at about ten times the size.
        browser: halve the colour resolution, for players that know 4:2:0 only.
        views: the views to write, such as [front], or with other names, such as {front: top}; all if left
            out.
        episodes: the episodes to write, as numbers from 0 on, ranges such as 3-7 (both included) or keys:
            [0, 3-7, pick-0001]; all if left out.
    """
    place = as_path(out)
    if place.exists() or (isinstance(place, Path) and place.is_symlink()):
        raise ExistingFile(f"{out} exists; export into a new folder, or delete this one")
    recorded = ShardSet(shards)
    numbers = chosen_episodes(episodes, [entry.key for entry in recorded.episodes], shards)
    for index in numbers:  # before the first one is encoded
        recorded.chosen_views(index, views)
    encoding = VideoEncoding(lossless=lossless, browser=browser, gop=_GOP[to])
    with _atomic_folder(place) as folder:
        writer = _writer(to, folder, encoding)
        for index in tqdm(numbers, unit="episode"):
            with _naming(f"episode {recorded.episodes[index].key!r} of {shards}"):
                writer.write(recorded.episode(index, views))
        writer.close()
    print(f"{out}: {counted(len(numbers), 'episode')} in the layout {to!r}")


@contextmanager
def _naming(episode: str) -> Iterator[None]:
    """Errors of a library name the episode."""
    try:
        yield
    except UserError:
        raise
    except FORMAT_FAULTS as error:
        raise InvalidValue(f"{episode} cannot be written: {fault(error)}") from error


@contextmanager
def _atomic_folder(place: AnyPath) -> Iterator[Path]:
    """A folder of this machine whose files appear under `place` when the block ends without an error."""
    local = isinstance(place, Path)
    folder = Path(f"{place}{PARTIAL}") if local else Path(tempfile.mkdtemp(suffix=PARTIAL))
    mark = folder / _MARK
    if local and (folder.exists() or folder.is_symlink()) and (folder.is_symlink() or not mark.is_file()):
        raise ExistingFile(f"{folder} is in the way of {place}, which is written there; delete or rename it")
    if local and folder.exists():  # an interrupted export
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield folder
        mark.unlink()
        if isinstance(place, Path):
            os.replace(folder, place)
        else:
            place.fs.put(f"{folder}/", place.path, recursive=True)
    except OSError as error:
        if isinstance(error, UserError) and not str(error.filename).startswith(str(folder)):
            raise  # of what is read
        if not isinstance(place, Path) and place.exists():  # some of the files arrived
            place.fs.rm(place.path, recursive=True)
        raise unwritten(error, place) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _writer(to: Layout, folder: Path, encoding: VideoEncoding) -> Writer:
    if to == "lerobot":  # pyarrow is imported where it is asked for
        from datamodules.export.lerobot import LeRobotWriter

        return LeRobotWriter(folder, encoding)
    from datamodules.export.action_images import ActionImagesWriter

    return ActionImagesWriter(folder, encoding)
