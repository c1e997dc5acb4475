"""Rotations and 7-DoF actions: quaternions are x, y, z, w, as in RLBench and SciPy."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotation_from_quaternion(quaternion: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation matrix (tool to world) of a quaternion x, y, z, w of any non-zero length."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_from_rotation(rotation: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 4"]:
    """Unit quaternion x, y, z, w of a rotation matrix, with w >= 0.

    Each of the four components can be found first; the largest one is taken, so no angle is singular.
    """
    m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    squares = torch.stack(  # four times the square of x, y, z, w
        [
            1 + m[0][0] - m[1][1] - m[2][2],
            1 - m[0][0] + m[1][1] - m[2][2],
            1 - m[0][0] - m[1][1] + m[2][2],
            1 + m[0][0] + m[1][1] + m[2][2],
        ],
        dim=-1,
    )
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    xw, yw, zw = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], xy, xz, xw], dim=-1),
            torch.stack([xy, squares[..., 1], yz, yw], dim=-1),
            torch.stack([xz, yz, squares[..., 2], zw], dim=-1),
            torch.stack([xw, yw, zw, squares[..., 3]], dim=-1),
        ],
        dim=-2,
    )
    best = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quaternion = candidates.gather(-2, best).squeeze(-2)
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def continuous_quaternions(quaternion: Float[Tensor, "*n t 4"]) -> Float[Tensor, "*n t 4"]:
    """The same rotations with signs that do not jump from frame to frame.

    q and -q are one rotation, but their numbers differ: a mean, a standard deviation or a network's target
    needs one of the two. The first frame has w >= 0, every other one the sign nearest the frame before it.
    Frames without a direction (NaN or zeros, no pose) stay as they are and the next one looks beyond them.
    """
    known = quaternion.isfinite().all(dim=-1) & (quaternion != 0).any(dim=-1)
    time = torch.arange(quaternion.shape[-2], device=quaternion.device).expand(known.shape)
    latest = torch.where(known, time, -1).cummax(dim=-1).values
    before = torch.cat([torch.full_like(latest[..., :1], -1), latest[..., :-1]], dim=-1)
    last = quaternion.gather(-2, before.clamp(min=0)[..., None].expand_as(quaternion))
    cosine = torch.where(before < 0, quaternion[..., 3], (quaternion * last).sum(dim=-1))
    turns = torch.where(known & (cosine < 0), -1, 1).cumprod(dim=-1)
    return torch.where((known & (turns < 0))[..., None], -quaternion, quaternion)


def geodesic_angle(a: Float[Tensor, "*n 3 3"], b: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n"]:
    """Angle in radians of the rotation that leads from `a` to `b`, exact for small angles too."""
    half_sine = (a - b).flatten(-2).norm(dim=-1) / 8**0.5
    return 2 * half_sine.clamp(max=1).asin()


def rotation_from_vector(vector: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation matrix of a rotation vector (axis times angle, radians), smooth through zero."""
    half = vector / 2
    angle = half.norm(dim=-1, keepdim=True)
    return rotation_from_quaternion(torch.cat([half * torch.sinc(angle / torch.pi), angle.cos()], dim=-1))


def vector_from_quaternion(quaternion: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3"]:
    """Rotation vector (axis times angle, radians) of a unit quaternion.

    The angle lies between 0 and pi.
    """
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    sine = quaternion[..., :3].norm(dim=-1, keepdim=True)
    small = sine < 1e-12  # where the angle is twice the sine
    factor = 2 * torch.atan2(sine, quaternion[..., 3:]) / torch.where(small, 1, sine)
    return torch.where(small, 2, factor) * quaternion[..., :3]


def slerp(
    start: Float[Tensor, "*n 4"], end: Float[Tensor, "*n 4"], fraction: Float[Tensor, "*n"]
) -> Float[Tensor, "*n 4"]:
    """Unit quaternions a fraction of the way from `start` to `end` along the shorter arc."""
    cosine = (start * end).sum(dim=-1, keepdim=True)
    end = torch.where(cosine < 0, -end, end)
    angle = 2 * ((start - end).norm(dim=-1, keepdim=True) / 2).clamp(max=1).asin()
    part, size = fraction[..., None], torch.sinc(angle / torch.pi)
    mixed = (1 - part) * torch.sinc((1 - part) * angle / torch.pi) * start
    mixed = mixed + part * torch.sinc(part * angle / torch.pi) * end
    return mixed / size
