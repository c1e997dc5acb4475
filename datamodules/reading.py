"""What readers of foreign files share: pictures, the order of numbered names, checks of numbers."""

import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from ai_wam.errors import InvalidValue
from ai_wam.files import AnyPath

HAND = re.compile(r"wrist|hand|gripper|ego", re.IGNORECASE)  # names of cameras that move with the tool
_UNDECODABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)  # Pillow's own
_STILL = 1e-6  # metres: less than this is the noise of float32, not a motion
_MOVED = 0.01  # metres that a tool must travel before its camera is expected to have followed


def read_picture(path: AnyPath) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as viewers show it: turned upright as its EXIF orientation says, colours untouched.

    Raises:
        ValueError: it is missing, cannot be decoded, or is not in RGB.
    """
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            if image.mode != "RGB":
                raise InvalidValue(
                    f"{path} has colours {image.mode!r}, expected RGB; save it without "
                    "transparency or palette, or copy the file again"
                )
            return np.array(ImageOps.exif_transpose(image))
    except InvalidValue:
        raise
    except _UNDECODABLE as error:
        raise InvalidValue(f"{path} cannot be decoded ({error}); copy or save the file again") from error


def is_turned(path: AnyPath) -> bool:
    """Whether a picture's EXIF orientation turns it; False for what is no picture."""
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except _UNDECODABLE:
        return False


def numbered(path: AnyPath) -> list[Any]:
    """Sorts files by the numbers in their names: episode9 before episode10."""
    return by_numbers(path.name)


def by_numbers(name: str) -> list[Any]:
    """Sorts names by the numbers in them."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def check_stride(stride: int, hz: float) -> None:
    """Refuse what cannot be a stride or a rate.

    Raises:
        ValueError: either is not above 0.
    """
    if stride < 1 or not hz > 0:
        raise InvalidValue(f"stride is {stride} and hz {hz}; give a stride of at least 1 and a rate above 0")


def check_finite(array: np.ndarray, at: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: the first frame that has them.
    """
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise InvalidValue(
            f"{at}, frame {int(bad.argmax())}: {array[int(bad.argmax())].tolist()} is not finite; leave the "
            "camera or the episode out, or record it again"
        )


def check_follows(poses: Float[np.ndarray, "_ 4 4"], positions: Float[np.ndarray, "t 3"], at: str) -> None:
    """A camera on the hand must move when the tool does; some data sets hold one pose for all frames.

    Args:
        poses: world_from_camera per frame, or one for all.
        positions: of the tool, metres.
        at: where they come from, for the error.

    Raises:
        ValueError: the tool travels and the camera's pose never changes.
    """
    travel = float(np.linalg.norm(positions - positions[0], axis=1).max())
    if travel > _MOVED and np.abs(poses - poses[0]).max() < _STILL:
        raise InvalidValue(
            f"{at}: the camera sits on the hand, but its pose is the same in all {len(positions)} frames "
            f"while the tool travels {travel:.3f} m; leave this view out (views: ...), correct the "
            "calibration, or call the view by another name if it does stand still"
        )


def check_hands(
    poses: Mapping[str, Float[np.ndarray, "_ 4 4"]], positions: Float[np.ndarray, "t 3"], at: str
) -> None:
    """`check_follows` for every camera that is named after a hand."""
    for name, stack in poses.items():
        if HAND.search(name):
            check_follows(stack, positions, f"{at}, camera {name!r}")
