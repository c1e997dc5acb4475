"""Video files of sources: opened once to find their length, and read in order."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

import numpy as np
from av.error import FFmpegError
from jaxtyping import Float, UInt8

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.video import VideoTable, iterate_video


@dataclass(frozen=True)
class VideoFile:
    """A readable video.

    Attributes:
        path: the file.
        frames: number of frames.
        size: height and width.
        shown: seconds at which each frame is shown, rising.
    """

    path: AnyPath
    frames: int
    size: tuple[int, int]
    shown: Float[np.ndarray, "n"] = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: AnyPath, hz: float | None = None) -> "VideoFile":
        """Open a file and check it.

        Args:
            path: the file.
            hz: frames per second that it must have; any if left out.

        Raises:
            ValueError: it is missing, holds no readable video, is cut off, lacks frames in between, or has
                another rate.
        """
        try:
            state = path.stat()
            table = _table(path, state.st_size, state.st_mtime_ns, hz)
        except (OSError, ValueError) as error:
            raise InvalidValue(f"{path}: {error}; copy it again, or leave the view out") from error
        return cls(path, *table)

    def images(
        self, count: int | None = None, stride: int = 1, begin: float = 0.0
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Pictures in order.

        Args:
            count: how many; up to the end if left out.
            stride: take every n-th frame.
            begin: seconds to start at.

        Raises:
            ValueError: the file ends early or cannot be decoded.
        """
        given = 0
        wanted = len(range(0, self.frames, stride)) if count is None else count
        try:
            with self.path.open("rb") as stream:
                for image in islice(iterate_video(stream, begin), 0, wanted * stride, stride):
                    yield image
                    given += 1
        except (FFmpegError, OSError, ValueError) as error:
            raise InvalidValue(
                f"{self.path}: picture {given} of {wanted} cannot be decoded ({error}); copy the file again"
            ) from error
        if given < wanted:
            raise InvalidValue(f"{self.path} ends after {given} of {wanted} pictures; copy the file again")


@lru_cache(maxsize=64)  # LeRobot packs hundreds of episodes into one file
def _table(
    path: AnyPath, size: int, changed: int, hz: float | None
) -> tuple[int, tuple[int, int], Float[np.ndarray, "n"]]:
    """Number of frames, their size, and their times in seconds; `size`, `changed` are keys of the cache."""
    table = VideoTable.of(path.read_bytes())
    table.check_times(hz)
    return len(table), table.size, np.array(table.shown) * table.tick
