"""The multiview action-image tokenizer: 7-DoF actions to images of three points, and back.

Each action becomes three points of the tool, drawn as Gaussian blobs into the channels of each camera's image
(Action Images, arXiv 2604.06168):

    R   the tool centre point p
    G   p + axis_length * tool x axis
    B   p - axis_length * tool z axis; where this blob is at most 0.25 the pixel is 0.25 * openness instead

Decoding finds the blobs (`ai_wam.action_images.blob_finding`), fits one rigid pose per step to all views
(`ai_wam.action_images.pose_fit`) and validates every clip by itself (`ai_wam.action_images.pose_sequences`).
Geometry is float64 inside, whatever the images' precision and the autocast.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ai_wam.action_images.blob_drawing import PEDESTAL, draw_blobs, draw_blobs_on_pedestal, empty_images
from ai_wam.action_images.blob_finding import Blobs, background_level, enlarged, find_blobs
from ai_wam.action_images.pose_fit import make_scene
from ai_wam.action_images.pose_sequences import (
    DecodeStatus,
    Limits,
    PoseSequences,
    bracket,
    estimate_sequences,
)
from ai_wam.cameras import Cameras
from ai_wam.errors import InvalidValue
from ai_wam.poses import rotation_from_quaternion
from ai_wam.utils.autocast import full_precision
from ai_wam.utils.brief_repr import POSE
from ai_wam.utils.number_checks import check_numbers
from ai_wam.utils.tensor_dataclass import TensorDataclass

__all__ = ["ActionImageTokenizer", "DecodeStatus", "DecodedActions", "Spread", "tool_points"]


@dataclass(frozen=True, repr=False)
class DecodedActions(TensorDataclass):
    """Actions read from action images, and how far to trust them.

    Attributes:
        actions: metres, unit quaternion x y z w (w >= 0 in the first step, then the sign nearest the step
            before) and openness in [0, 1], float32. The pose of an invalid step is interpolated between the
            clip's valid ones or held at its ends; NaN if there are none. The openness is read wherever any
            view shows a blob, and held elsewhere.
        valid: whether the pose was measured.
        status: values of DecodeStatus.
        confidence: exp(-position_std / limit - rotation_std / limit) with the tokenizer's limits: 1 = exact,
            0 = invalid.
        position_std: predicted standard deviation per axis, metres; infinite where invalid.
        rotation_std: predicted standard deviation of the rotation vector per axis, radians; infinite where
            invalid.
        pixels: where the points R, G, B were found, x right and y down, in the cameras' pixel coordinates;
            NaN where no blob was found.
        weight: 1 for the points the pose rests on, 0 for those not found or set aside; 0 for all of an
            invalid step.
    """

    units: ClassVar[Mapping[str, str]] = {
        "actions": POSE,
        "position_std": "metres",
        "rotation_std": "radians",
    }
    actions: Float[Tensor, "b t 8"]
    valid: Bool[Tensor, "b t"]
    status: Int[Tensor, "b t"]
    confidence: Float[Tensor, "b t"]
    position_std: Float[Tensor, "b t"]
    rotation_std: Float[Tensor, "b t"]
    pixels: Float[Tensor, "b v t 3 2"]
    weight: Float[Tensor, "b v t 3"]


class Spread(NamedTuple):
    """How widely errors scatter, over what the images say themselves; 1 where their noise is white.

    Attributes:
        position: factor of the standard deviations of positions.
        rotation: the same of rotations.
    """

    position: float = 1.0
    rotation: float = 1.0


@dataclass(frozen=True)
class ActionImageTokenizer:
    """Draws actions and reads them back.

    Attributes:
        blob_std: width of a blob as a fraction of the image's shorter side. A codec that thins images by K
            needs at least 0.8 K pixels.
        axis_length: distance in metres from the tool centre point to the other two points.
        pixel_center: coordinate of the centre of pixel 0; 0.5 as in `ai_wam.cameras`, 0 as in the released
            images.
        binary_openness: draw the openness as 0 or 1 (above 0.5), as in the released images.
        max_position_std: metres per axis; vaguer poses are DEGENERATE.
        max_rotation_std: radians per axis; the same for rotations.
        min_parallax: radians; where no two views see a point under different enough angles it is DEGENERATE.
        min_amplitude: fitted height below which there is no blob.
        max_disagreement: RMS distance, in blob widths, between where the points are seen and where the best
            pose puts them, beyond which a step is INCONSISTENT. Below half of it no step is; in between a
            step may disagree four times as much as its clip's median step.
        max_disagreement_pixels: the same in pixels; the larger of both counts. It decides in small images,
            where blobs of a generated video are a pixel or two off.

    Raises:
        ValueError: a width, length or limit that is not positive.
    """

    blob_std: float = 0.05
    axis_length: float = 0.1
    pixel_center: float = 0.5
    binary_openness: bool = False
    max_position_std: float = 0.1
    max_rotation_std: float = 0.7
    min_parallax: float = 0.035
    min_amplitude: float = 0.1
    max_disagreement: float = 0.25
    max_disagreement_pixels: float = 3.0

    def __post_init__(self) -> None:
        for name in (
            "blob_std",
            "axis_length",
            "max_position_std",
            "max_rotation_std",
            "min_amplitude",
            "max_disagreement",
            "max_disagreement_pixels",
        ):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"ActionImageTokenizer: {name} must be > 0, got {getattr(self, name)}")
        drawn = {
            "blob_std": self.blob_std,
            "axis_length": self.axis_length,
            "pixel_center": self.pixel_center,
        }
        check_numbers("ActionImageTokenizer", **drawn)
        check_numbers("ActionImageTokenizer", at_least=0, min_parallax=self.min_parallax)

    @torch.no_grad()
    def encode(
        self,
        actions: Float[Tensor, "b t 8"],
        cameras: Cameras,
        size: tuple[int, int],
        out: Float[Tensor, "b v 3 t h w"] | None = None,
    ) -> Float[Tensor, "b v 3 t h w"]:
        """Action images in [0, 1], float32; twice that less one is what a video codec takes.

        Points behind a camera, and all points of a camera that is not finite, are not drawn. An all-zero
        quaternion means that no action was recorded: no blobs, black background.

        Args:
            actions: world frame, absolute.
            cameras: leading dimensions "b v t".
            size: image height and width in pixels.
            out: where to write, on the actions' device; repeated calls save most of their time by it.

        Raises:
            ValueError: shapes that do not fit, or (on the CPU) actions that are not finite.
        """
        out = self._check_encode(actions, cameras, size, out)
        b, v, t = cameras.shape
        pixels = self.project(actions, cameras, size)
        with full_precision(actions.device):
            recorded = actions[..., 3:7].ne(0).any(dim=-1)
            openness = actions[..., 7].float().clamp(0, 1)
            if self.binary_openness:
                openness = (openness > 0.5).float()
            level = (PEDESTAL * openness * recorded)[:, None].expand(b, v, t)
            std = self.blob_std * min(size)
            draw_blobs(pixels[..., 0, :], std, self.pixel_center, out[:, :, 0])
            draw_blobs(pixels[..., 1, :], std, self.pixel_center, out[:, :, 1])
            draw_blobs_on_pedestal(pixels[..., 2, :], level, std, self.pixel_center, out[:, :, 2])
        return out

    @torch.no_grad()
    def project(
        self, actions: Float[Tensor, "b t 8"], cameras: Cameras, size: tuple[int, int]
    ) -> Float[Tensor, "b v t 3 2"]:
        """Where the three points of every action are drawn, in pixels, x right and y down.

        NaN for points behind a camera, of cameras that are not finite, and of actions that were not recorded.

        Args:
            actions: world frame, absolute.
            cameras: leading dimensions "b v t".
            size: image height and width in pixels.
        """
        b, v, t = cameras.shape
        with full_precision(actions.device):
            recorded = actions[..., 3:7].ne(0).any(dim=-1)
            points = tool_points(actions.double(), self.axis_length)
            projection = cameras.to(points).project(points[:, None].expand(b, v, t, 3, 3), size)
            drawn = (projection.depth > 0) & recorded[:, None, :, None]
            return projection.pixels.masked_fill(~drawn[..., None], torch.nan)

    def blob_radii(self, size: tuple[int, int]) -> tuple[float, float, float]:
        """Pixels from the centres of the blobs R, G and B to where they are lost in the background.

        For R and G that is at a fiftieth of their height, for B at the pedestal of the openness.
        """
        std = self.blob_std * min(size)
        red, blue = (std * math.sqrt(-2 * math.log(height)) for height in (0.02, PEDESTAL))
        return red, red, blue

    @torch.no_grad()
    def decode(
        self,
        images: Float[Tensor, "b v 3 t h w"] | UInt8[Tensor, "b v 3 t h w"],
        cameras: Cameras,
        view_mask: Bool[Tensor, "b v"] | None = None,
        size: tuple[int, int] | None = None,
        spread: Spread = Spread(),  # noqa: B008 - a tuple
    ) -> DecodedActions:
        """The actions that action images show.

        Never raises for what the images show: `status` says what is wrong with a step. NaN and infinite
        pixels are left out, and so is a view whose camera is not finite or has a zero focal length.

        Args:
            images: in [0, 1], floats of any precision, or uint8 in [0, 255].
            cameras: leading dimensions "b v t"; on any device.
            view_mask: False for views to be ignored.
            size: height and width in pixels for which the cameras are given, where the images are smaller.
            spread: of the errors, where the images do not say all about them.

        Raises:
            ValueError: shapes that do not fit.
        """
        b, v = self._check_decode(images, cameras, view_mask)
        h, w = images.shape[-2:]
        size = size or (h, w)
        if size[0] * w != size[1] * h:
            raise InvalidValue(f"decode: images of {h} x {w} pixels have another shape than size {size}")
        device = images.device
        cameras = cameras.to(device=device, dtype=torch.float64)
        calibrated = _calibrated(cameras)
        shown = (
            torch.ones(b, v, dtype=torch.bool, device=device) if view_mask is None else view_mask.to(device)
        )
        asked = calibrated & shown[:, :, None]
        with full_precision(device):
            blobs = self._find(images, size)
            seen = blobs.seen & shown[:, :, None, None]
            openness = _openness(images, seen)
            lost = _lost(seen & calibrated[..., None], blobs.finite, asked, shown)
            sequences = self._poses(cameras, blobs, seen & calibrated[..., None], lost, size)
        sequences = sequences._replace(
            position_std=spread.position * sequences.position_std,
            rotation_std=spread.rotation * sequences.rotation_std,
        )
        return self._result(sequences, openness, blobs.pixels.masked_fill(~seen[..., None], torch.nan))

    @torch.no_grad()
    def locate(
        self,
        pixels: Float[Tensor, "b v t 3 2"],
        openness: Float[Tensor, "b t"],
        cameras: Cameras,
        size: tuple[int, int],
        pixel_std: float = 2.0,
    ) -> DecodedActions:
        """The actions whose points R, G and B were found by other means, such as a person's clicks.

        Args:
            pixels: x right and y down; NaN where a point was not found.
            openness: in [0, 1].
            cameras: leading dimensions "b v t", all finite.
            size: image height and width in pixels.
            pixel_std: standard deviation of the pixels, per axis.
        """
        pixels, cameras = pixels.double(), cameras.to(dtype=torch.float64, device=pixels.device)
        seen = pixels.isfinite().all(dim=-1)
        information = torch.eye(2, dtype=pixels.dtype, device=pixels.device) / pixel_std**2
        blobs = Blobs(
            pixels, information.expand(*seen.shape, 2, 2), seen.double(), seen, torch.ones_like(seen)
        )
        asked = seen.new_ones(cameras.shape)
        lost = _lost(seen, blobs.finite, asked, asked[:, :, 0])
        return self._result(self._poses(cameras, blobs, seen, lost, size), openness.double(), pixels)

    def _find(self, images: Tensor, size: tuple[int, int]) -> Blobs:
        """The blobs in pixels of images of `size`, with leading dimensions "b v t 3"."""
        b, v, c, t, h, w = images.shape
        blue = torch.arange(c, device=images.device) == 2
        on_pedestal = blue[None, None, :, None].expand(b, v, c, t).flatten()
        std = self.blob_std * min(h, w)
        flat = images.reshape(-1, h, w)
        found = find_blobs(flat, on_pedestal, std, self.pixel_center, self.min_amplitude)
        if size != (h, w):
            found = enlarged(found, size[0] / h, self.pixel_center)
        return Blobs(*(field.unflatten(0, (b, v, c, t)).movedim(2, 3) for field in found))

    def _poses(
        self, cameras: Cameras, blobs: Blobs, usable: Tensor, lost: Tensor, size: tuple[int, int]
    ) -> PoseSequences:
        b, v, t = cameras.shape
        if v == 1:  # a second, unused view saves every later step from the special case
            cameras = cameras.map(lambda matrix: matrix.repeat_interleave(2, dim=1))
            blobs = Blobs(*(field.repeat_interleave(2, dim=1) for field in blobs))
            usable = torch.cat([usable, torch.zeros_like(usable)], dim=1)
        cameras = _replace_uncalibrated(cameras)
        offsets = tool_points(
            torch.tensor([0, 0, 0, 0, 0, 0, 1, 0], dtype=torch.float64, device=usable.device),
            self.axis_length,
        )
        scene = make_scene(
            cameras.map(lambda matrix: matrix.movedim(1, 2).flatten(0, 1)),
            blobs.pixels.movedim(1, 2).flatten(0, 1),
            blobs.information.movedim(1, 2).flatten(0, 1),
            usable.movedim(1, 2).flatten(0, 1),
            offsets,
        )
        sequences = estimate_sequences(scene, b, lost.flatten(), self._limits(size))
        weight = sequences.weight.unflatten(0, (b, t)).movedim(1, 2)[:, :v]
        return sequences._replace(weight=weight)

    def _limits(self, size: tuple[int, int]) -> Limits:
        loose = max(self.max_disagreement * self.blob_std * min(size), self.max_disagreement_pixels)
        return Limits(self.max_position_std, self.max_rotation_std, self.min_parallax, loose / 2, loose)

    def _result(self, sequences: PoseSequences, openness: Tensor, pixels: Tensor) -> DecodedActions:
        valid = sequences.status <= DecodeStatus.RESCUED
        spread = (
            sequences.position_std / self.max_position_std + sequences.rotation_std / self.max_rotation_std
        )
        actions = torch.cat([sequences.position, sequences.quaternion, openness[..., None]], dim=-1)
        return DecodedActions(
            actions=actions.float(),
            valid=valid,
            status=sequences.status,
            confidence=torch.exp(-spread).float(),
            position_std=sequences.position_std.float(),
            rotation_std=sequences.rotation_std.float(),
            pixels=pixels.float(),
            weight=sequences.weight.float(),
        )

    def _check_encode(
        self, actions: Tensor, cameras: Cameras, size: tuple[int, int], out: Tensor | None
    ) -> Float[Tensor, "b v 3 t h w"]:
        shape = cameras.shape
        if len(shape) != 3 or actions.shape != (shape[0], shape[2], 8) or shape[1] < 1:
            raise InvalidValue(
                "encode: actions must be [b, t, 8] and cameras [b, v, t] with v >= 1, got "
                f"{tuple(actions.shape)} and {tuple(shape)}; expand cameras that do not move over t"
            )
        if actions.device.type == "cpu" and not bool(actions.isfinite().all()):
            first = tuple(int(i) for i in (~actions.isfinite()).nonzero()[0])
            raise InvalidValue(
                f"encode: actions{list(first)} is {float(actions[first])}; steps without action are zeros"
            )
        wanted = (shape[0], shape[1], 3, shape[2], *size)
        if out is None:
            return empty_images(wanted, actions.device)
        if out.shape != wanted or out.dtype != torch.float32 or out.device != actions.device:
            raise InvalidValue(
                f"encode: out must be float32 {wanted} on {actions.device}, got {out.dtype} "
                f"{tuple(out.shape)} on {out.device}"
            )
        return out

    @staticmethod
    def _check_decode(images: Tensor, cameras: Cameras, view_mask: Tensor | None) -> tuple[int, int]:
        if images.dim() != 6 or images.shape[2] != 3:
            raise InvalidValue(f"decode: images must be [b, v, 3, t, h, w], got {tuple(images.shape)}")
        if not (images.is_floating_point() or images.dtype == torch.uint8):
            raise InvalidValue(f"decode: images must be floats in [0, 1] or uint8, got {images.dtype}")
        b, v, _, t = images.shape[:4]
        if cameras.shape != (b, v, t) or min(b, v, t) < 1:
            raise InvalidValue(
                f"decode: images {tuple(images.shape)} need cameras [b, v, t] = {[b, v, t]}, all >= 1, got "
                f"{list(cameras.shape)}; expand cameras that do not move over t"
            )
        if view_mask is not None and view_mask.shape != (b, v):
            raise InvalidValue(f"decode: view_mask must be [b, v] = {[b, v]}, got {list(view_mask.shape)}")
        return b, v


def tool_points(actions: Float[Tensor, "*n 8"], axis_length: float) -> Float[Tensor, "*n 3 3"]:
    """World coordinates, metres, of the points drawn in R, G and B; NaN where the quaternion is zero."""
    position, rotation = actions[..., :3], rotation_from_quaternion(actions[..., 3:7])
    offsets = torch.stack([torch.zeros_like(position), rotation[..., 0], -rotation[..., 2]], dim=-2)
    return position[..., None, :] + axis_length * offsets


def _calibrated(cameras: Cameras) -> Bool[Tensor, "b v t"]:
    """Whether the matrices are finite and the focal lengths are not zero."""
    finite = [m.isfinite().flatten(-2).all(-1) for m in (cameras.intrinsics, cameras.world_from_camera)]
    focal = (cameras.intrinsics[..., 0, 0] != 0) & (cameras.intrinsics[..., 1, 1] != 0)
    return finite[0] & finite[1] & focal


def _replace_uncalibrated(cameras: Cameras) -> Cameras:
    """Harmless matrices where there is no calibration; those views are not used."""
    good = _calibrated(cameras)[..., None, None]

    def heal(matrix: Tensor) -> Tensor:
        return torch.where(
            good, matrix, torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        )

    return cameras.map(heal)


def _openness(images: Tensor, seen: Bool[Tensor, "b v t 3"]) -> Float[Tensor, "b t"]:
    """Level of the blue background, averaged over the views that show anything; held where none does."""
    level = background_level(images[:, :, 2]).double() / PEDESTAL
    read = seen.any(dim=-1) & level.isfinite()
    mean = torch.where(read, level, 0).sum(1) / read.sum(1).clamp(min=1)
    known = read.any(dim=1)
    before, _, _ = bracket(known)
    held = mean.gather(1, before)
    return held.clamp(0, 1).masked_fill(~known.any(dim=1, keepdim=True), torch.nan)


def _lost(
    usable: Bool[Tensor, "b v t 3"],
    finite: Bool[Tensor, "b v t 3"],
    asked: Bool[Tensor, "b v t"],
    shown: Bool[Tensor, "b v"],
) -> Int[Tensor, "b t"]:
    """Why a step has not enough evidence (a DecodeStatus), or OK."""
    broken = (shown[:, :, None] & (~asked | ~finite.all(-1))).any(1)
    nothing = ~usable.flatten(3).any(-1).any(1)
    status = torch.where(nothing, int(DecodeStatus.FILLED), int(DecodeStatus.OFFSCREEN))
    status = torch.where(broken, int(DecodeStatus.NONFINITE), status)
    status = torch.where((shown.sum(1) < 2)[:, None], int(DecodeStatus.DEGENERATE), status)
    return torch.where((usable.sum(1) >= 2).all(-1), int(DecodeStatus.OK), status)
