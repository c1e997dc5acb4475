"""`ai-wam export`: a folder of shards into the layout of another project."""

import os
import shutil
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from tqdm import tqdm

from ai_wam.files import unwritten
from ai_wam.types import Episode
from ai_wam.video import VideoEncoding
from datamodules.shard_reader import ShardSet

Layout: TypeAlias = Literal["action_images", "lerobot"]
_GOP: dict[Layout, int] = {"action_images": 12, "lerobot": 2}  # as each project encodes


@runtime_checkable
class Writer(Protocol):
    """What a layout's writer does; the folder is renamed into place after `close`."""

    def write(self, episode: Episode) -> None:
        """Append an episode."""
        ...

    def close(self) -> None:
        """Write what belongs to the whole set."""
        ...


def export(shards: str, out: str, to: Layout, lossless: bool = False, browser: bool = False) -> None:
    """Write recorded episodes in the layout of another project.

    Args:
        shards: a folder that `ai-wam collect` or `convert` wrote.
        out: folder of the new data set; must not exist.
        to: the layout; docs/sources.md describes each.
        lossless: keep every pixel exactly, at about ten times the size.
        browser: halve the colour resolution, for players that know 4:2:0 only.
    """
    place, partial = Path(out), Path(f"{out}.partial")
    if place.exists():
        raise SystemExit(f"{out} exists; export into a new folder, or delete this one")
    episodes = ShardSet(shards)
    if partial.exists():  # an interrupted export
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    encoding = VideoEncoding(lossless=lossless, browser=browser, gop=_GOP[to])
    try:
        writer = _writer(to, partial, encoding)
        for index in tqdm(range(len(episodes)), unit="episode"):
            writer.write(episodes[index])
        writer.close()
    except OSError as error:
        shutil.rmtree(partial)
        raise unwritten(error, out) from error
    os.replace(partial, place)
    print(f"{out}: {len(episodes)} episodes in the layout {to!r}")


def _writer(to: Layout, folder: Path, encoding: VideoEncoding) -> Writer:
    if to == "lerobot":  # pyarrow is imported where it is asked for
        from datamodules.lerobot_writer import LeRobotWriter

        return LeRobotWriter(folder, encoding)
    from datamodules.action_images_layout import ActionImagesWriter

    return ActionImagesWriter(folder, encoding)
