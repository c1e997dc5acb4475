"""Pinhole cameras: pixel and camera-frame conventions are defined here alone.

Camera frames are OpenCV's: x right, y down, z forward. The centre of pixel (0, 0) lies at (0.5, 0.5), so an
image of w x h pixels covers [0, w] x [0, h]. `world_from_camera` maps camera coordinates to world
coordinates; RLBench calls that matrix "extrinsics", OpenCV and COLMAP call its inverse so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from ai_wam.errors import InvalidType, InvalidValue
from ai_wam.utils.autocast import full_precision
from ai_wam.utils.brief_repr import BriefRepr

_ROTATION_TOLERANCE = 1e-3


class Projection(NamedTuple):
    """Pixels `*n p 2` (x right, y down), depths `*n p` in metres along the optical axis, and visibility."""

    pixels: Tensor
    depth: Tensor
    visible: Tensor


@dataclass(frozen=True, repr=False)
class Cameras(BriefRepr):
    """Pinhole cameras with any leading dimensions; a leading time dimension makes them move.

    Attributes:
        intrinsics: matrices K in pixels. Focal lengths may be negative (RLBench): the sign then flips the
            camera's x and y axes.
        world_from_camera: rigid 4 x 4 matrices, metres.

    Raises:
        ValueError: wrong shapes, half precision, or a finite matrix that is no rigid motion. Matrices with
            NaN are accepted (a lost calibration): nothing is visible in such a camera.
    """

    units: ClassVar[Mapping[str, str]] = {"intrinsics": "pixels", "world_from_camera": "metres, OpenCV axes"}
    intrinsics: Float[Tensor, "*n 3 3"]
    world_from_camera: Float[Tensor, "*n 4 4"]

    def __post_init__(self) -> None:
        k, e = self.intrinsics, self.world_from_camera
        for name, matrix in (("intrinsics", k), ("world_from_camera", e)):
            if not isinstance(matrix, Tensor):
                raise InvalidType(
                    f"Cameras: {name} must be a tensor (torch.as_tensor), got a {type(matrix).__name__}"
                )
        if k.shape[-2:] != (3, 3) or e.shape[-2:] != (4, 4) or k.shape[:-2] != e.shape[:-2]:
            raise InvalidValue(
                "Cameras: intrinsics must be [..., 3, 3] and world_from_camera [..., 4, 4] with equal "
                f"leading dimensions, got {tuple(k.shape)} and {tuple(e.shape)}"
            )
        for name, matrix in (("intrinsics", k), ("world_from_camera", e)):
            if matrix.dtype not in (torch.float32, torch.float64):
                raise InvalidValue(
                    f"Cameras: {name} must be float32 or float64, got {matrix.dtype}: "
                    "half precision costs millimetres"
                )
        # On an accelerator the check would wait for the device; matrices come from the CPU.
        if e.device.type == "cpu" and not _are_rigid(e):
            _check_rigid(e)

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.intrinsics.shape[:-2]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        """The cameras with `function` applied to both stacks of matrices: indexing, reshaping, casting."""
        return replace(
            self, intrinsics=function(self.intrinsics), world_from_camera=function(self.world_from_camera)
        )

    def __getitem__(self, index: Any) -> "Cameras":
        return self.map(lambda matrix: matrix[index])

    def to(self, *args: Any, **kwargs: Any) -> "Cameras":
        """Both stacks moved or cast as `Tensor.to` does."""
        return self.map(lambda matrix: matrix.to(*args, **kwargs))

    def project(self, points: Float[Tensor, "*n p 3"], size: tuple[int, int]) -> Projection:
        """Project world points.

        Args:
            points: metres, world frame; leading dimensions as the cameras'.
            size: image height and width in pixels; visible points lie in front of the camera and inside it.
        """
        rotation, position = self.world_from_camera[..., :3, :3], self.world_from_camera[..., None, :3, 3]
        local = _times(points - position, rotation)  # R^T (x - p), row vectors
        depth = local[..., 2]
        homogeneous = _times(local, self.intrinsics.transpose(-1, -2))
        pixels = homogeneous[..., :2] / depth[..., None]
        h, w = size
        limit = pixels.new_tensor([w, h])
        inside = ((pixels >= 0) & (pixels < limit)).all(dim=-1)
        return Projection(pixels, depth, inside & (depth > 0))

    def unproject(
        self, pixels: Float[Tensor, "*n p 2"], depth: Float[Tensor, "*n p"]
    ) -> Float[Tensor, "*n p 3"]:
        """World points, metres, of pixels at a depth along the optical axis."""
        local = _directions(self.intrinsics, pixels) * depth[..., None]
        rotation, position = self.world_from_camera[..., :3, :3], self.world_from_camera[..., None, :3, 3]
        return _times(local, rotation.transpose(-1, -2)) + position

    def rays(
        self, size: tuple[int, int], grid: tuple[int, int] | None = None
    ) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n gh gw 3"]]:
        """Origin and unit directions, world frame, of rays through the cell centres of a grid over the image.

        Args:
            size: image height and width in pixels.
            grid: rows and columns; the pixels themselves if left out.
        """
        h, w = size
        gh, gw = grid or size
        k = self.intrinsics
        y = (torch.arange(gh, dtype=k.dtype, device=k.device) + 0.5) * (h / gh)
        x = (torch.arange(gw, dtype=k.dtype, device=k.device) + 0.5) * (w / gw)
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # gh*gw 2
        local = _directions(k, centres.expand(*self.shape, -1, -1))
        world = _times(local, self.world_from_camera[..., :3, :3].transpose(-1, -2))
        unit = functional.normalize(world, dim=-1).unflatten(-2, (gh, gw))
        return self.world_from_camera[..., :3, 3], unit

    def plucker(
        self, size: tuple[int, int], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "*n gh gw 6"]:
        """Pluecker coordinates of `rays`: unit direction d and moment o x d, metres, world frame."""
        origin, direction = self.rays(size, grid)
        moment = torch.linalg.cross(origin[..., None, None, :].expand_as(direction), direction)
        return torch.cat([direction, moment], dim=-1)

    def relative_to(self, world_from_reference: Float[Tensor, "*m 4 4"]) -> "Cameras":
        """The cameras in the frame of a reference pose, which broadcasts against their leading dimensions."""
        reference_from_world = _rigid_inverse(world_from_reference)
        return replace(self, world_from_camera=_times(reference_from_world, self.world_from_camera))

    @classmethod
    def from_rlbench(
        cls, intrinsics: Float[Tensor, "*n 3 3"], extrinsics: Float[Tensor, "*n 4 4"]
    ) -> "Cameras":
        """Cameras of RLBench's `misc`: x left, y up, negative focal lengths, camera-to-world "extrinsics"."""
        return cls(intrinsics * _FLIP_FOCAL.to(intrinsics), extrinsics * _FLIP_XY.to(extrinsics))

    def to_rlbench(self) -> tuple[Float[Tensor, "*n 3 3"], Float[Tensor, "*n 4 4"]]:
        """Intrinsics and extrinsics as RLBench records them: the inverse of `from_rlbench`."""
        k, e = self.intrinsics, self.world_from_camera
        return k * _FLIP_FOCAL.to(k), e * _FLIP_XY.to(e)

    @classmethod
    def from_opengl(
        cls, intrinsics: Float[Tensor, "*n 3 3"], world_from_camera: Float[Tensor, "*n 4 4"]
    ) -> "Cameras":
        """Cameras in the frame of OpenGL, MuJoCo and Blender: x right, y up, z backward; positive focals."""
        return cls(intrinsics, world_from_camera * _FLIP_YZ.to(world_from_camera))

    def to_opengl(self) -> tuple[Float[Tensor, "*n 3 3"], Float[Tensor, "*n 4 4"]]:
        """Intrinsics and camera-to-world matrices in OpenGL axes: the inverse of `from_opengl`."""
        e = self.world_from_camera
        return self.intrinsics, e * _FLIP_YZ.to(e)


# Right multiplication by diag(...) written as a product with its columns.
_FLIP_XY = torch.tensor([-1.0, -1.0, 1.0, 1.0])
_FLIP_YZ = torch.tensor([1.0, -1.0, -1.0, 1.0])
_FLIP_FOCAL = torch.tensor([[-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])


@dataclass(frozen=True)
class CropResize:
    """A centre crop to the target's aspect ratio, then a resize: the same map for pixels and for intrinsics.

    Attributes:
        source: height and width of the images that come in.
        target: height and width of those that go out.
    """

    source: tuple[int, int]
    target: tuple[int, int]

    @property
    def _crop(self) -> tuple[int, int, int, int]:
        """Top, left, height, width of the crop in source pixels."""
        (h, w), (th, tw) = self.source, self.target
        scale = min(h / th, w / tw)
        ch, cw = min(h, round(th * scale)), min(w, round(tw * scale))
        return (h - ch) // 2, (w - cw) // 2, ch, cw

    def images(self, images: Shaped[Tensor, "*n h w"]) -> Float[Tensor, "*n th tw"]:
        """Crop and resize with antialiasing; integers come back as floats on the same scale."""
        if tuple(images.shape[-2:]) != self.source:
            raise InvalidValue(
                f"CropResize: images are {tuple(images.shape[-2:])} pixels (h, w), expected {self.source}"
            )
        top, left, h, w = self._crop
        cropped = images[..., top : top + h, left : left + w]
        if not cropped.is_floating_point():
            cropped = cropped.float()
        if (h, w) == self.target:
            return cropped
        flat = cropped.reshape(-1, 1, h, w)
        resized = functional.interpolate(
            flat, self.target, mode="bilinear", antialias=True, align_corners=False
        )
        return resized.reshape(*images.shape[:-2], *self.target)

    def cameras(self, cameras: Cameras) -> Cameras:
        """The cameras whose projections land where `images` moves the pixels."""
        return replace(cameras, intrinsics=self.intrinsics(cameras.intrinsics))

    def intrinsics(self, matrices: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
        """Matrices K of those cameras."""
        top, left, h, w = self._crop
        k = matrices.clone()
        k[..., 0, 2] -= left
        k[..., 1, 2] -= top
        k[..., 0, :] *= self.target[1] / w
        k[..., 1, :] *= self.target[0] / h
        return k


def _directions(intrinsics: Tensor, pixels: Tensor) -> Tensor:
    """Camera-frame directions with z = 1 through pixels `... p 2`; K is upper triangular, skew included."""
    k = intrinsics[..., None, :, :]
    y = (pixels[..., 1] - k[..., 1, 2]) / k[..., 1, 1]
    x = (pixels[..., 0] - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, in the matrices' own precision whatever the autocast."""
    with full_precision(a.device):
        product: Tensor = a @ b
    return product


def _rigid_inverse(matrix: Tensor) -> Tensor:
    rotation, position = matrix[..., :3, :3], matrix[..., :3, 3:]
    inverse = matrix.clone()
    inverse[..., :3, :3] = rotation.transpose(-1, -2)
    inverse[..., :3, 3:] = -_times(rotation.transpose(-1, -2), position)
    return inverse


def _are_rigid(matrix: Tensor) -> bool:
    """Whether all matrices are finite and rigid, in NumPy: many small operations on a few small matrices."""
    found = matrix.detach().numpy()
    rotation = found[..., :3, :3]
    with np.errstate(invalid="ignore", over="ignore"):  # of matrices that are not finite
        gram = rotation @ rotation.swapaxes(-1, -2)
        off = np.abs(gram - np.eye(3)), np.abs(found[..., 3, :] - [0, 0, 0, 1])
    close = all(bool((each <= _ROTATION_TOLERANCE).all()) for each in off)
    placed = bool(np.isfinite(found[..., :3, 3]).all())
    return close and placed and bool((np.linalg.det(rotation) > 0).all())


def _check_rigid(matrix: Tensor) -> None:
    """Raise for the first matrix that is finite and no rigid motion."""
    rotation = matrix[..., :3, :3]
    finite = matrix.isfinite().flatten(-2).all(dim=-1)
    error = (
        (_times(rotation, rotation.transpose(-1, -2)) - torch.eye(3, dtype=matrix.dtype))
        .abs()
        .flatten(-2)
        .amax(-1)
    )
    mirrored = torch.linalg.det(torch.where(finite[..., None, None], rotation, 0)) < 0
    last = (matrix[..., 3, :] - matrix.new_tensor([0, 0, 0, 1])).abs().amax(-1)
    bad = finite & ((error > _ROTATION_TOLERANCE) | mirrored | (last > _ROTATION_TOLERANCE))
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise InvalidValue(
            f"Cameras: world_from_camera{list(first)} is no rigid motion (R R^T is "
            f"{float(error[first]):.3g} off the identity, limit {_ROTATION_TOLERANCE:g}; det R must be +1; "
            f"last row 0 0 0 1):\n{matrix[first]}\n"
            "Give a rotation and a translation in metres; scale and shear belong into the intrinsics."
        )
