"""Checks of a frame's action and cameras, shared by writers and readers of shards."""

import numpy as np
import torch
from jaxtyping import Float

from ai_wam.cameras import Cameras
from ai_wam.errors import InvalidValue

_QUATERNION_TOLERANCE = 1e-3
_OPENNESS_TOLERANCE = 1e-3
_ROTATION_TOLERANCE = 5e-4  # half of what `Cameras` allows, whose sums may be rounded otherwise


def checked_action(action: Float[np.ndarray, "8"], at: str) -> Float[np.ndarray, "8"]:
    """The action as float32 with a quaternion of length 1.

    Args:
        action: x y z, quaternion x y z w, openness.
        at: where it comes from, for the error.

    Raises:
        ValueError: wrong shape, a number that is not finite, a quaternion further than 1e-3 from length 1,
            openness outside [0, 1].
    """
    if action.shape != (8,):
        raise InvalidValue(
            f"{at}: an action has 8 numbers (x y z, quaternion x y z w, openness), got {action.shape}"
        )
    if not np.isfinite(action).all():
        raise InvalidValue(
            f"{at}: action {action.tolist()} is not finite; give None where no action was recorded"
        )
    exact = action.astype(np.float64)
    length = float(np.linalg.norm(exact[3:7]))
    if abs(length - 1) > _QUATERNION_TOLERANCE:
        raise InvalidValue(
            f"{at}: quaternion {exact[3:7].tolist()} (x y z w) has length {length:.6g}, expected 1 within "
            f"{_QUATERNION_TOLERANCE:g}; is the order of the numbers right?"
        )
    if not -_OPENNESS_TOLERANCE <= exact[7] <= 1 + _OPENNESS_TOLERANCE:
        raise InvalidValue(
            f"{at}: openness {exact[7]:.6g} lies outside [0, 1] (1 = open); scale it in the source"
        )
    exact[3:7] /= length
    exact[7] = exact[7].clip(0, 1)
    return exact.astype(np.float32)


def check_actions(actions: Float[np.ndarray, "t 8"]) -> None:
    """Refuse actions that `checked_action` refuses.

    Raises:
        ValueError: naming the first such frame.
    """
    exact = actions.astype(np.float64)
    length, openness = np.linalg.norm(exact[:, 3:7], axis=1), exact[:, 7]
    good = np.isfinite(exact).all(axis=1) & (np.abs(length - 1) <= _QUATERNION_TOLERANCE)
    good &= (openness >= -_OPENNESS_TOLERANCE) & (openness <= 1 + _OPENNESS_TOLERANCE)
    if not good.all():
        frame = int((~good).argmax())
        checked_action(actions[frame], f"frame {frame}")


def check_cameras(k: Float[np.ndarray, "t 3 3"], e: Float[np.ndarray, "t 4 4"], at: str) -> None:
    """Refuse matrices that are no cameras; all NaN means a lost calibration.

    Args:
        k: of every frame.
        e: world_from_camera of every frame.
        at: where they come from, for the error.

    Raises:
        ValueError: numbers that are not finite, focal lengths that are not above 0, a pose that is not rigid.
    """
    lost = np.isnan(k).all(axis=(1, 2)) | np.isnan(e).all(axis=(1, 2))
    good = np.isfinite(k).all(axis=(1, 2)) & np.isfinite(e).all(axis=(1, 2))
    good &= (k[:, 2] == [0, 0, 1]).all(axis=-1) & (k[:, [0, 1], [0, 1]] > 0).all(axis=-1)
    if not (lost | good).all():
        frame = int((~(lost | good)).argmax())
        raise InvalidValue(
            f"{at}, frame {frame}: matrices must be finite (or all NaN where the calibration is lost), focal "
            f"lengths above 0 and K's last row 0 0 1, got K {k[frame].tolist()} and world_from_camera "
            f"{e[frame].tolist()}"
        )
    if _rigid(e[~lost]):
        return
    try:
        Cameras(torch.from_numpy(k), torch.from_numpy(e))
    except ValueError as error:
        raise InvalidValue(f"{at}, index = frame: {error}") from error


def _rigid(e: Float[np.ndarray, "t 4 4"]) -> bool:
    """Whether all are surely rigid: a tenth of the time that `Cameras` takes for one matrix."""
    r = e[:, :3, :3]
    off = np.abs(r @ r.swapaxes(1, 2) - np.eye(3, dtype=e.dtype))
    right_handed = (np.cross(r[:, 0], r[:, 1]) * r[:, 2]).sum(axis=1) > 0
    return bool((off < _ROTATION_TOLERANCE).all() and right_handed.all() and (e[:, 3] == [0, 0, 0, 1]).all())
