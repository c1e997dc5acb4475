"""Shared by the sources: reading pictures and text, sorting numbered names, checks of numbers."""

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.files.json_yaml import read_text

_LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines also splits at U+2028 and others
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() also takes 1_0
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
                    "transparency or palette, grey in three equal channels, or copy the file again"
                )
            return np.array(ImageOps.exif_transpose(image))
    except InvalidValue:
        raise
    except _UNDECODABLE as error:
        raise InvalidValue(f"{path} cannot be decoded ({error}); copy or save the file again") from error


def is_turned(path: AnyPath) -> bool:
    """Whether a picture has an EXIF orientation that turns it; False for a file that is no picture."""
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except _UNDECODABLE:
        return False


def read_lines(path: AnyPath) -> list[str]:
    """The lines of a text file in UTF-8, without their ends.

    Raises:
        ValueError: unreadable, or in another encoding.
    """
    text = read_text(path)
    if "\0" in text:
        raise InvalidValue(f"{path} holds NUL characters, as UTF-16 does; save it as UTF-8")
    return _LINE_END.split(text)


def parse_number(text: str) -> float:
    """A finite number in the notation of CSV files, such as -0.5 or 1e-3; spaces around it do not count.

    Raises:
        ValueError: any other text.
    """
    if not _NUMBER.fullmatch(text.strip(" \t")):
        raise InvalidValue(f"{text!r} is no finite number such as -0.5 or 1e-3")
    if not math.isfinite(number := float(text)):
        raise InvalidValue(f"{text!r} is beyond the largest float64, so it is not finite")
    return number


def not_finite(value: Any, key: str = "") -> str | None:
    """Key of the first NaN or infinity in a JSON value, such as arm.force[2]; None if there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else key
    if isinstance(value, Mapping):
        parts = ((f"{key}.{name}" if key else str(name), part) for name, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{key}[{number}]", part) for number, part in enumerate(value))
    else:
        return None
    return next((found for name, part in parts if (found := not_finite(part, name)) is not None), None)


def numbered(path: AnyPath) -> list[Any]:
    """Sort key of a file by the numbers in its name: episode9 before episode10."""
    return by_numbers(path.name)


def by_numbers(name: str) -> list[Any]:
    """Sort key of a name by the numbers in it."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def check_stride(stride: int, hz: float) -> None:
    """Check a stride and a rate.

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
    """Check that a camera on the hand moves when the tool does; some data sets repeat one pose.

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
