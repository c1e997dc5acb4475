"""Which way up the pictures of a video are shown: what FFmpeg gives as the display matrix of a frame."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ai_wam.errors import InvalidValue

_SKEW = 0.01  # of a display matrix's entries, as rounding leaves it
_ONE = 1 << 16  # FFmpeg's display matrices are in 16.16 fixed point


class Turn(NamedTuple):
    """How stored pictures are turned before they are shown: transposed first, then mirrored."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @classmethod
    def of(cls, frame: Any) -> "Turn":
        """What a decoded frame's display matrix says; no turn where it has none.

        Raises:
            ValueError: a turn by other than quarters.
        """
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                return cls._of_matrix(struct.unpack("=9i", bytes(data)))
        return cls()

    @classmethod
    def _of_matrix(cls, matrix: Sequence[int]) -> "Turn":
        """Of nine numbers: a stored pixel (x, y) is shown at (a x + c y, b x + d y)."""
        exact = [value / _ONE for value in matrix[:5]]
        a, b, _, c, d = (round(value) for value in exact)
        quarter = (abs(a), abs(b), abs(c), abs(d)) in ((1, 0, 0, 1), (0, 1, 1, 0))
        if not quarter or max(abs(value - round(value)) for value in exact) > _SKEW:
            raise InvalidValue(
                f"its display matrix {tuple(matrix[:5])} turns pictures by other than quarters; "
                "write it again upright"
            )
        return cls(a == 0, a + c < 0, b + d < 0)

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Height and width as shown."""
        return stored[::-1] if self.transposed else stored

    def apply(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "sh sw 3"]:
        """The picture as shown."""
        turned = picture.transpose(1, 0, 2) if self.transposed else picture
        turned = turned[:: -1 if self.mirrored_y else 1, :: -1 if self.mirrored_x else 1]
        return np.ascontiguousarray(turned)
