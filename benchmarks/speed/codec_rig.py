"""Scenes, cameras and image damage for measuring the action-image codec, and its errors and their bound."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ai_wam.action_images import ActionImageTokenizer, DecodedActions, tool_points
from ai_wam.cameras import Cameras
from ai_wam.poses import geodesic_angle, rotation_from_quaternion, slerp

_FRONT, _OVERHEAD = (1.25, 0.0, 0.35), (0.05, 0.0, 1.3)
_LEFT, _RIGHT = (-0.55, 0.9, 0.75), (-0.55, -0.9, 0.75)
EYES = (_FRONT, _OVERHEAD, _LEFT, _RIGHT)
"""Camera positions in metres, 1.29 to 1.33 from the workspace's centre, the origin."""

WORKSPACE = (0.6, 0.8, 0.6)
"""Metres; in view of all four cameras as a whole."""


def rig(
    eyes: tuple[tuple[float, float, float], ...], frames: int, size: int, field_of_view: float = 60.0
) -> Cameras:
    """Square pinhole cameras looking at the origin, leading dimensions "1 v t"; field of view in degrees."""
    poses = torch.stack([_look_at_origin(eye) for eye in eyes])
    focal = size / 2 / math.tan(math.radians(field_of_view) / 2)
    k = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    views = len(eyes)
    return Cameras(k.expand(1, views, frames, 3, 3), poses[None, :, None].expand(1, views, frames, 4, 4))


def negative_focal_rig(frames: int, size: int) -> Cameras:
    """Two cameras as RLBench states them: negative focal lengths, x left and y up; 40 degrees, 1.5 m."""
    far = tuple((x * 1.5 / 1.3, y * 1.5 / 1.3, z * 1.5 / 1.3) for x, y, z in EYES[:2])
    return Cameras(*rig(far, frames, size, field_of_view=40.0).to_rlbench())


def turned_rig(degrees: float, frames: int, size: int) -> Cameras:
    """Two cameras whose lines of sight to the origin enclose an angle."""
    angle = math.radians(degrees)
    return rig((_FRONT, (1.25 * math.cos(angle), 1.25 * math.sin(angle), 0.35)), frames, size)


def _look_at_origin(eye: tuple[float, float, float]) -> Float[Tensor, "4 4"]:
    position = torch.tensor(eye, dtype=torch.float64)
    z = -functional.normalize(position, dim=0)
    x = functional.normalize(torch.linalg.cross(z, z.new_tensor([0.1, 0.0, 1.0])), dim=0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :4] = torch.stack([x, torch.linalg.cross(z, x), z, position], dim=1)
    return pose


def trajectory(frames: int, seed: int) -> Float[Tensor, "1 t 8"]:
    """A smooth random path through the workspace, any orientation, a gripper that toggles; float32."""
    generator = torch.Generator().manual_seed(seed)
    knots = max(2, frames // 8)
    time = torch.linspace(0, knots - 1 - 1e-6, frames, dtype=torch.float64)
    cell = time.long()
    ease = (1 - torch.cos(math.pi * (time - cell))) / 2
    corners = (torch.rand(knots, 3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor(WORKSPACE)
    turns = functional.normalize(torch.randn(knots, 4, generator=generator, dtype=torch.float64), dim=-1)
    position = torch.lerp(corners[cell], corners[cell + 1], ease[:, None])
    quaternion = slerp(turns[cell], turns[cell + 1], ease)
    openness = (torch.rand(knots, generator=generator)[cell] > 0.5).double()
    return torch.cat([position, quaternion, openness[:, None]], dim=-1)[None].float()


def eight_bit(images: Tensor) -> Tensor:
    """Rounded to 8 bits."""
    return (images.clamp(0, 1) * 255).round() / 255


def truncated(images: Tensor) -> Tensor:
    """Cut to 8 bits, as a cast to integers does."""
    return (images * 255).floor() / 255


def noisy(level: float, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """White noise, clipped to [0, 1] and rounded."""
    return lambda images: eight_bit(unclipped_noise(level, seed)(images))


def unclipped_noise(level: float, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """White noise and nothing else."""

    def damage(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.empty_like(images).normal_(generator=generator).mul_(level).add_(images)

    return damage


def blurred(factor: int, latent_noise: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Antialiased thinning by a factor, noise there, bilinear enlargement, rounding: like an autoencoder."""

    def damage(images: Tensor) -> Tensor:
        flat = images.flatten(0, 2)
        h, w = flat.shape[-2:]
        small = functional.interpolate(flat, (h // factor, w // factor), mode="bilinear", antialias=True)
        generator = torch.Generator().manual_seed(factor)
        small = small + latent_noise * torch.empty_like(small).normal_(generator=generator)
        return eight_bit(functional.interpolate(small, (h, w), mode="bilinear").reshape(images.shape))

    return damage


def patch_codec(channels: int, latent_noise: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The first DCT coefficients of 8 x 8 pixels x 4 frames, as for tiny models; frame 0 stands alone.

    Args:
        channels: coefficients kept of 256, in order of total frequency.
        latent_noise: standard deviation added to the kept (orthonormal) coefficients.
    """

    def basis(n: int) -> Tensor:
        i = torch.arange(n, dtype=torch.float64)
        rows = torch.cos(math.pi / n * (i[None] + 0.5) * i[:, None])
        return functional.normalize(rows, dim=-1).float()

    time, side = basis(4), basis(8)
    order = torch.cartesian_prod(torch.arange(4) * 2, torch.arange(8), torch.arange(8)).sum(-1)
    kept = torch.zeros(256)
    kept[order.argsort(stable=True)[:channels]] = 1

    def damage(images: Tensor) -> Tensor:
        frames = images.shape[3]
        padded = torch.cat([images[:, :, :, :1].expand(-1, -1, -1, 3, -1, -1), images], dim=3)
        padded = padded[:, :, :, : frames + 3 - (frames + 3) % 4]
        blocks = padded.unfold(3, 4, 4).unfold(4, 8, 8).unfold(5, 8, 8)
        latent = torch.einsum("...tyx,at,by,cx->...abc", blocks, time, side, side)
        generator = torch.Generator().manual_seed(channels)
        latent = latent + latent_noise * torch.empty_like(latent).normal_(generator=generator)
        latent = latent * kept.reshape(4, 8, 8)
        restored = torch.einsum("...abc,at,by,cx->...tyx", latent, time, side, side)
        video = restored.permute(0, 1, 2, 3, 6, 4, 7, 5, 8).reshape(padded.shape)
        return video[:, :, :, 3:].clamp(0, 1)

    return damage


def hit_steps(frames: int, seed: int, share: float = 0.3) -> Bool[Tensor, "t"]:
    """Mask of the damaged steps, `share` of all."""
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(seed))
    return order < round(share * frames)


def replace_view(images: Tensor, other: Tensor | None, hit: Tensor, seed: int) -> Tensor:
    """A random view of every hit step replaced by another clip's picture of that camera, or by black."""
    damaged = images.clone()
    views = torch.randint(images.shape[1], (len(hit),), generator=torch.Generator().manual_seed(seed + 99))
    for step in hit.nonzero().flatten().tolist():
        view = int(views[step])
        damaged[:, view, :, step] = 0 if other is None else other[:, view, :, step]
    return damaged


@dataclass(frozen=True)
class Errors:
    """Per step: millimetres, degrees, right gripper state, flagged (not valid), squared normalised errors."""

    position: Tensor
    rotation: Tensor
    gripper: Tensor
    flagged: Tensor
    hit: Tensor
    position_score: Tensor
    rotation_score: Tensor

    @classmethod
    def of(cls, decoded: DecodedActions, truth: Tensor, hit: Tensor | None = None) -> "Errors":
        """Errors of decoded actions "b t 8"."""
        position = (decoded.actions[..., :3] - truth[..., :3]).double().norm(dim=-1)
        rotations = [rotation_from_quaternion(a[..., 3:7].double()) for a in (decoded.actions, truth)]
        rotation = geodesic_angle(rotations[0], rotations[1])
        none = torch.zeros_like(decoded.valid)
        return cls(
            1e3 * position.flatten(),
            torch.rad2deg(rotation).flatten(),
            ((decoded.actions[..., 7] > 0.5) == (truth[..., 7] > 0.5)).flatten(),
            ~decoded.valid.flatten(),
            (none if hit is None else none | hit).flatten(),
            (position.square() / (3 * decoded.position_std.double().square())).flatten(),
            (rotation.square() / (3 * decoded.rotation_std.double().square())).flatten(),
        )

    @classmethod
    def join(cls, parts: "list[Errors]") -> "Errors":
        """All steps of several clips."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def kept(self, values: Tensor) -> Tensor:
        """The values of steps that were not flagged; a single infinity if there are none."""
        kept = values[~self.flagged]
        return kept if len(kept) else values.new_tensor([math.inf])


def pose_bound(
    actions: Float[Tensor, "1 t 8"], cameras: Cameras, size: int, tokenizer: ActionImageTokenizer
) -> tuple[float, float]:
    """Cramer-Rao bound for white pixel noise of standard deviation 1: RMS millimetres and degrees.

    From every pixel's derivative by the blob's place, and the place's derivative by the pose.
    """
    std = tokenizer.blob_std * size
    offset = torch.arange(size, dtype=torch.float64) + tokenizer.pixel_center
    jacobian, pixels = _pixel_derivatives(actions, cameras, size, tokenizer)
    total = torch.zeros(actions.shape[1], 6, 6, dtype=torch.float64)
    for view in range(pixels.shape[0]):
        for point in range(3):
            x = (offset - pixels[view, :, point, :1]) / std  # t w
            y = (offset - pixels[view, :, point, 1:]) / std
            blob = torch.exp(-0.5 * (y[:, :, None] ** 2 + x[:, None, :] ** 2))
            slopes = torch.stack([blob * x[:, None, :], blob * y[:, :, None]], dim=1).flatten(2) / std
            if point == 2:
                slopes = slopes * (blob > 0.25).flatten(1)[:, None]
            information = slopes @ slopes.mT  # t 2 2
            total += jacobian[view, :, point].mT @ information @ jacobian[view, :, point]
    variance = torch.linalg.inv(total).diagonal(dim1=-2, dim2=-1).unflatten(-1, (2, 3)).sum(-1).mean(0)
    return 1e3 * math.sqrt(variance[0]), math.degrees(math.sqrt(variance[1]))


def _pixel_derivatives(
    actions: Tensor, cameras: Cameras, size: int, tokenizer: ActionImageTokenizer
) -> tuple[Float[Tensor, "v t 3 2 6"], Float[Tensor, "v t 3 2"]]:
    """Derivatives of the points' pixels by position and rotation vector (central differences); the pixels."""
    points = tool_points(actions.double(), tokenizer.axis_length)[0]
    lever = points - points[:, :1]

    def pixels(shifted: Tensor) -> Tensor:
        return cameras[0].project(shifted.expand(cameras.shape[1], -1, -1, -1), (size, size)).pixels

    columns, tiny = [], 1e-6
    for axis in range(6):
        unit = torch.zeros(3, dtype=torch.float64)
        unit[axis % 3] = tiny
        move = unit.expand_as(lever) if axis < 3 else torch.linalg.cross(unit.expand_as(lever), lever)
        columns.append((pixels(points + move) - pixels(points - move)) / (2 * tiny))
    return torch.stack(columns, dim=-1), pixels(points)
