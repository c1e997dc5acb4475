"""Whether cameras are plausible for the pictures and poses that come with them."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.cameras import Cameras
from ai_wam.episodes import Frame
from ai_wam.errors import InvalidValue

_CENTRE = (0.3, 0.7)  # of a picture's side: where a principal point is plausible
_ASPECT = (0.5, 2.0)  # fx / fy of any camera
_FOCAL = (0.1, 100.0)  # of a picture's side: from 157 degrees, which no pinhole shows, to a telescope
_BEYOND = 0.25  # of a picture's side: how far outside of it a tool is plausible


def check_intrinsics(k: Float[np.ndarray, "_ 3 3"], size: tuple[int, int], at: str) -> None:
    """Check that K is plausible for pictures of this size.

    Args:
        k: in pixels; focal lengths may both be negative, as RLBench's are.
        size: height and width of the pictures.
        at: file and camera, for the error.

    Raises:
        ValueError: a principal point far from the middle, pixels far from square, or a focal length in
            another unit.
    """
    low, high = _CENTRE
    shares = k[:, [0, 1], 2] / np.array(size[::-1])
    aspect = k[:, 0, 0] / k[:, 1, 1]
    bad = ~((shares >= low) & (shares <= high)).all(axis=1)
    if bad.any():
        x, y = k[int(bad.argmax()), [0, 1], 2]
        raise InvalidValue(
            f"{at}: the principal point of K, ({x:.1f}, {y:.1f}), lies far from the middle of a picture of "
            f"{size[1]} x {size[0]} pixels (width x height), so K belongs to pictures of another size or to "
            "uncropped ones; give K for the pictures as they are, or the pictures that K was made for (where "
            "they are a crop, and K is its own: fill it up with black on the side that was cut off)"
        )
    bad = ~((aspect > _ASPECT[0]) & (aspect < _ASPECT[1]))
    if bad.any():
        fx, fy = k[int(bad.argmax()), [0, 1], [0, 1]]
        raise InvalidValue(
            f"{at}: fx and fy of K are {fx:.4g} and {fy:.4g}: pixels far from square, so the picture was "
            "stretched or K is not its own; give K for the pictures as they are"
        )
    focal = abs(k[:, [0, 1], [0, 1]]) / np.array(size[::-1])
    bad = ~((focal > _FOCAL[0]) & (focal < _FOCAL[1])).all(axis=1)
    if bad.any():
        fx, fy = k[int(bad.argmax()), [0, 1], [0, 1]]
        raise InvalidValue(
            f"{at}: fx and fy of K are {fx:.4g} and {fy:.4g} for a picture of {size[1]} x "
            f"{size[0]} pixels (width x height), plausible are {_FOCAL[0]:g} to {_FOCAL[1]:g} of its sides; "
            "give them in pixels, not in millimetres (pixels = millimetres * width / the sensor's width)"
        )


def place_in_picture(camera: Cameras, point: Float[Tensor, "3"], size: tuple[int, int]) -> tuple[str, bool]:
    """Where a point lies, in words, and whether it is in the picture, or outside by a quarter of it at most.

    Args:
        camera: one camera, no leading dimensions.
        point: metres, world.
        size: height and width of the picture.
    """
    seen = camera.project(point[None].to(camera.intrinsics), size)
    (x, y), depth, (h, w) = seen.pixels[0].tolist(), float(seen.depth), size
    near = -_BEYOND * w <= x <= (1 + _BEYOND) * w and -_BEYOND * h <= y <= (1 + _BEYOND) * h
    where = f"at pixel ({x:.0f}, {y:.0f}) of {w} x {h}, {depth:.2f} m in front of the camera"
    return where, depth > 0 and near


def check_tool_near_pictures(frame: Frame) -> None:
    """Refuse a pose that lies far outside of every picture: it and the cameras are in no common frame.

    Raises:
        ValueError: where the tool would be seen, view by view.
    """
    assert frame.action is not None
    found = {}
    for name, view in frame.views.items():
        camera = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
        found[name] = place_in_picture(
            camera, torch.from_numpy(frame.action[:3]), (view.image.shape[0], view.image.shape[1])
        )
    if found and not any(near for _, near in found.values()):
        listed = "; ".join(f"in {name!r} {where}" for name, (where, _) in found.items())
        raise InvalidValue(
            f"the tool at {frame.action[:3].round(4).tolist()} m lies far outside of every picture "
            f"({listed}); give pose and cameras in one world frame, in metres (cameras: world_from_camera)"
        )
