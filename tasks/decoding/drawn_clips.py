"""Random motions before random cameras, of which action images can be drawn without any data."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ai_wam.cameras import Cameras
from ai_wam.poses import slerp

_DISTANCE = (0.7, 2.0)  # metres from a camera to the middle of the motions
_FIELD_OF_VIEW = (35.0, 80.0)  # degrees along the picture's shorter side
_SPACE, _TRAVEL = 0.7, 0.6  # metres: where motions lie, and how far the fastest go
_KNOTS = 3  # poses between which a motion is interpolated


def drawn_clips(
    count: int, views: int, frames: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Float[Tensor, "n t 8"], Cameras]:
    """Actions, and cameras of leading dimensions "n v t" in front of which they happen.

    Cameras stand in any direction and look roughly at the motions; they do not move. Some motions are slow
    and some are fast, so that a blob crosses up to half of a picture within the clip.

    Args:
        count: number of clips.
        views: cameras of a clip.
        frames: of a clip.
        size: image height and width in pixels.
        generator: of everything that is drawn.
    """
    return _motions(count, frames, generator), _cameras(count, views, frames, size, generator)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _motions(count: int, frames: int, generator: torch.Generator) -> Float[Tensor, "n t 8"]:
    time = torch.linspace(0, _KNOTS - 1 - 1e-6, frames, dtype=torch.float64)
    knot = time.long()
    ease = (1 - torch.cos(math.pi * (time - knot))) / 2
    speed = _uniform(generator, count, 1, 1) ** 2
    middle = (_uniform(generator, count, 1, 3) - 0.5) * _SPACE
    place = middle + (_uniform(generator, count, _KNOTS, 3) - 0.5) * _TRAVEL * speed
    first = functional.normalize(_normal(generator, count, 1, 4), dim=-1)
    turn = functional.normalize(first + _TRAVEL * speed * _normal(generator, count, _KNOTS, 4), dim=-1)
    position = torch.lerp(place[:, knot], place[:, knot + 1], ease[:, None])
    quaternion = slerp(turn[:, knot], turn[:, knot + 1], ease.expand(count, -1))
    openness = _uniform(generator, count, _KNOTS)[:, knot, None]
    return torch.cat([position, quaternion, openness], dim=-1).float()


def _cameras(
    count: int, views: int, frames: int, size: tuple[int, int], generator: torch.Generator
) -> Cameras:
    lead = (count, views)
    low, high = _DISTANCE
    away = low + (high - low) * _uniform(generator, *lead, 1)
    eye = functional.normalize(_normal(generator, *lead, 3), dim=-1) * away
    z = functional.normalize(0.1 * _normal(generator, *lead, 3) - eye, dim=-1)
    x = functional.normalize(torch.linalg.cross(z, _normal(generator, *lead, 3)), dim=-1)
    pose = torch.eye(4, dtype=torch.float64).repeat(*lead, 1, 1)
    pose[..., :3, :] = torch.stack([x, torch.linalg.cross(z, x), z, eye], dim=-1)
    low, high = _FIELD_OF_VIEW
    half = torch.deg2rad(low + (high - low) * _uniform(generator, *lead)) / 2
    k = torch.zeros(*lead, 3, 3, dtype=torch.float64)
    k[..., 0, 0] = k[..., 1, 1] = min(size) / 2 / torch.tan(half)
    k[..., 0, 2], k[..., 1, 2], k[..., 2, 2] = size[1] / 2, size[0] / 2, 1
    return Cameras(k, pose).map(lambda matrix: matrix[:, :, None].expand(-1, -1, frames, -1, -1))
