"""Lens distortion, removed from pictures as they are converted, so that K alone describes the camera.

Coefficients are OpenCV's (docs.opencv.org, camera calibration and 3D reconstruction); COLMAP's models are
special cases of them. Needs the extra `opencv`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ai_wam.errors import InvalidValue, MissingPackage

Model = Literal["opencv", "fisheye"]
_NUMBERS: dict[str, tuple[int, ...]] = {"opencv": (4, 5, 8, 12, 14), "fisheye": (4,)}
_MEANING = {"opencv": "k1, k2, p1, p2[, k3[, k4, k5, k6 ...]]", "fisheye": "k1, k2, k3, k4"}
_RADII = 2000  # at which a model is sampled
_NEWTON = 20  # steps
_FOUND = 0.01  # pixels


@dataclass(frozen=True)
class Lens:
    """The distortion of a lens.

    Attributes:
        model: OpenCV's pinhole model with radial, tangential and further terms, or its fisheye model.
        coefficients: in OpenCV's order.
    """

    model: Model
    coefficients: tuple[float, ...]

    @classmethod
    def read(cls, coefficients: Any, model: Any, at: str) -> "Lens | None":
        """Check the distortion in a camera file; None for a lens without distortion.

        Raises:
            ValueError: an unknown model, or another number of coefficients.
        """
        kind = {"opencv_fisheye": "fisheye", "pinhole": "opencv"}.get(str(model).lower(), str(model).lower())
        if kind not in _NUMBERS:
            raise InvalidValue(
                f"{at}: the model {model!r} is not known; known are 'opencv' and 'fisheye' (OpenCV's). "
                "Remove the distortion first (colmap image_undistorter, cv2.undistort) and give K of the new "
                "pictures"
            )
        try:
            numbers = np.asarray(coefficients, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidValue(f"{at}: distortion is {coefficients!r}, expected numbers") from error
        truths = np.asarray(coefficients).dtype == bool
        if truths or len(numbers) not in _NUMBERS[kind] or not np.isfinite(numbers).all():
            counts = ", ".join(map(str, _NUMBERS[kind]))
            raise InvalidValue(
                f"{at}: distortion is {coefficients!r}; the model {kind!r} has {counts} finite numbers "
                f"({_MEANING[kind]})"
            )
        if kind == "fisheye":
            return cls("fisheye", tuple(numbers.tolist()))  # bends even where all are zero
        return cls("opencv", tuple(numbers.tolist())) if numbers.any() else None

    def undistort(
        self, picture: UInt8[np.ndarray, "h w 3"], k: Float[np.ndarray, "3 3"]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of a camera with this K without distortion; black where the lens sees nothing.

        Args:
            picture: with the lens's distortion.
            k: of the lens, in pixels, the first pixel's centre at 0.5; also valid for the result.

        Raises:
            ImportError: OpenCV is missing.
        """
        cv2 = opencv()
        x, y, seen = _maps(self, tuple(k.reshape(-1).tolist()), picture.shape[:2])
        straight = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return np.where(seen[..., None], straight, np.uint8(0))

    def straighten(
        self, pixels: Float[np.ndarray, "n 2"], k: Float[np.ndarray, "3 3"]
    ) -> Float[np.ndarray, "n 2"]:
        """Pixels of the undistorted picture from pixels of the distorted one; NaN stays NaN.

        Raises:
            ValueError: a pixel that no ray from the lens reaches.
            ImportError: OpenCV is missing.
        """
        straight, known = pixels.copy(), np.isfinite(pixels).all(axis=1)
        if not known.any():
            return straight
        bent = pixels[known] - 0.5  # OpenCV's first pixel has its centre at 0
        flat = _flatten(self, bent, _matrix(k))
        apart, radius = (np.hypot(*each.T) for each in (_bend(self, flat, _matrix(k))[0] - bent, flat))
        seen = (apart < _FOUND) & (radius < _fold(self, float(radius.max()) + 1.0))
        if not seen.all():
            x, y = pixels[known][int(np.argmin(seen))]
            raise InvalidValue(
                f"pixel ({x:.1f}, {y:.1f}) is not reached by any ray of the lens ({self.model} distortion "
                f"{list(self.coefficients)}); correct the pixel or the coefficients"
            )
        straight[known] = flat @ k[:2, :2].T + k[:2, 2]
        return straight


def _flatten(
    lens: Lens, bent: Float[np.ndarray, "n 2"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n 2"]:
    """Slopes x / z and y / z of the rays that end at some pixels.

    OpenCV's own iteration is off by some pixels at the edge of a webcam's picture; Newton steps follow it.
    """
    cv2, numbers = opencv(), np.array(lens.coefficients)
    functions = {"opencv": cv2.undistortPoints, "fisheye": cv2.fisheye.undistortPoints}
    flat = np.asarray(functions[lens.model](bent[:, None], matrix, numbers)[:, 0])
    for _ in range(_NEWTON if lens.model == "opencv" else 0):
        ends, slopes = _bend(lens, flat, matrix)
        flat = flat + (np.linalg.pinv(slopes) @ (bent - ends)[..., None])[..., 0]
    return flat


def _bend(
    lens: Lens, flat: Float[np.ndarray, "n 2"], matrix: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 2"]]:
    """The pixels at which rays of slopes x / z, y / z end, and (pinhole model) how they change with these."""
    cv2, numbers = opencv(), np.array(lens.coefficients)
    if lens.model == "fisheye":
        return cv2.fisheye.distortPoints(flat[:, None], matrix, numbers)[:, 0], np.zeros((len(flat), 2, 2))
    rays, none = np.pad(flat, ((0, 0), (0, 1)), constant_values=1.0), np.zeros(3)
    ends, slopes = cv2.projectPoints(rays[:, None], none, none, matrix, numbers)
    return ends[:, 0], slopes[:, 3:5].reshape(-1, 2, 2)  # by the translation, which moves rays of depth 1


def _matrix(k: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """K where the first pixel's centre is at 0, as OpenCV has it."""
    return k - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def opencv() -> Any:
    """The module cv2.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingPackage(
            "removing lens distortion from pictures needs OpenCV: pip install 'ai-wam[opencv]', or give "
            "pictures without distortion and no `distortion`"
        ) from error
    return cv2


@lru_cache(maxsize=16)
def _maps(
    lens: Lens, k: tuple[float, ...], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """For each pixel of the undistorted picture: x and y in the distorted one, and whether it is visible."""
    cv2, (h, w) = opencv(), size
    matrix = _matrix(np.array(k).reshape(3, 3))
    numbers, same = np.array(lens.coefficients), np.eye(3)
    functions = {"opencv": cv2.initUndistortRectifyMap, "fisheye": cv2.fisheye.initUndistortRectifyMap}
    x, y = functions[lens.model](matrix, numbers, same, matrix, (w, h), cv2.CV_32FC1)
    columns, rows = np.meshgrid(np.arange(w), np.arange(h))
    rays = np.linalg.inv(matrix) @ np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    radius = np.hypot(rays[0], rays[1]).reshape(h, w)
    return x, y, radius < _fold(lens, float(radius.max()))


def _fold(lens: Lens, largest: float) -> float:
    """The radius from which the distortion polynomial decreases and would map two rays to one pixel."""
    radii = np.linspace(0, largest, _RADII)
    if lens.model == "fisheye":
        angles = np.arctan(radii)
        bent = angles * np.polyval([*reversed(lens.coefficients), 1.0], angles**2)
    else:
        k1, k2, _, _, k3, k4, k5, k6 = (*lens.coefficients, *[0.0] * 4)[:8]
        bent = radii * np.polyval([k3, k2, k1, 1], radii**2) / np.polyval([k6, k5, k4, 1], radii**2)
    back = np.flatnonzero(np.diff(bent) <= 0)
    return float(radii[back[0]]) if len(back) else np.inf
