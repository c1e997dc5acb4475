"""Depth pictures: RLBench's 24-bit PNGs in, and a lossless member `<view>.depth.npz` of the shards.

The member is an ordinary .npz with one float32 "h w" array of metres per frame, named by the frame's number
("000000"): distance along the camera's forward axis, not along the ray.
"""

import io
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from ai_wam.errors import InvalidValue
from ai_wam.files.numpy_arrays import read_npz

_HEADER = 16_384  # bytes at most of an array's header in a .npz
_STEPS = 2**24 - 1  # of a picture whose red, green and blue bytes are one number, red the highest


def depth_member(view: str) -> str:
    """Name of a view's depth member, without the episode's key."""
    return f"{view}.depth.npz"


def rlbench_depth(picture: UInt8[np.ndarray, "h w 3"], near: float, far: float) -> Float[np.ndarray, "h w"]:
    """Metres of a picture as RLBench saves it: the part of the way from the near plane to the far one."""
    red, green, blue = np.moveaxis(picture.astype(np.uint32), -1, 0)
    part = (red << 16 | green << 8 | blue) / _STEPS
    return (near + part * (far - near)).astype(np.float32)


class DepthWriter:
    """Compresses depth frame by frame, so that an episode's depth is never in memory uncompressed."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.frames, self._buffer = size, 0, io.BytesIO()
        self._zip = zipfile.ZipFile(self._buffer, "w", zipfile.ZIP_DEFLATED)

    def add(self, depth: Float[np.ndarray, "h w"], at: str) -> None:
        """Append a frame.

        Raises:
            ValueError: another size than the pictures', or numbers that are NaN or negative.
        """
        if depth.shape != self.size:
            raise InvalidValue(f"{at}: depth of {depth.shape} pixels (h, w), the picture has {self.size}")
        if not (depth >= 0).all():
            raise InvalidValue(f"{at}: depth must be at least 0 metres everywhere, got {depth.min()}")
        buffer = io.BytesIO()
        np.save(buffer, depth.astype(np.float32), allow_pickle=False)
        place = zipfile.ZipInfo(f"{self.frames:06d}.npy")  # its time is fixed: 1980
        place.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(place, buffer.getvalue())
        self.frames += 1

    def finish(self) -> bytes:
        """The member."""
        self._zip.close()
        return self._buffer.getvalue()


def read_depth(member: bytes, frames: Sequence[int], size: tuple[int, int]) -> Float[np.ndarray, "t h w"]:
    """Metres at some frames of a member.

    Args:
        member: the file.
        frames: their numbers.
        size: height and width of the pictures.

    Raises:
        ValueError: a frame that it does not have, or another size.
    """
    names = [f"{number:06d}" for number in frames]
    most = len(names) * (_HEADER + 4 * size[0] * size[1])
    stored = read_npz(member, "the depth", names, most)
    for name, array in stored.items():
        if array.shape != size or array.dtype != np.float32:
            what = f"shape {array.shape} of {array.dtype}"
            raise InvalidValue(f"frame {name} has {what}, expected {size} of float32")
    return np.stack([stored[name] for name in names])
