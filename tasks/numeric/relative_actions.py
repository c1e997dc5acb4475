"""Actions as numbers about the present pose, at a scale that networks learn easily."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.poses import (
    continuous_quaternions,
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_vector,
    vector_from_quaternion,
)
from ai_wam.utils.autocast import full_precision
from ai_wam.utils.number_checks import check_numbers


@dataclass(frozen=True)
class RelativeActions:
    """Actions as seven numbers: the way from the present position, a rotation vector, the openness.

    Axes are the world's, so a number says the same wherever the tool is turned to.

    Attributes:
        metres: a way of one unit.
        radians: a rotation of one unit.
    """

    metres: float = 0.2
    radians: float = 0.5

    CHANNELS = 7

    def __post_init__(self) -> None:
        check_numbers("RelativeActions", above=0, metres=self.metres, radians=self.radians)

    def encode(self, actions: Float[Tensor, "b a 8"], now: Float[Tensor, "b 8"]) -> Float[Tensor, "b a 7"]:
        """Numbers of poses and openness, about the present pose; the openness becomes -1 (closed) to 1."""
        with full_precision(actions.device):
            turn = rotation_from_quaternion(actions[..., 3:7].double())
            turn = turn @ rotation_from_quaternion(now[:, None, 3:7].double()).mT
            vector = vector_from_quaternion(quaternion_from_rotation(turn)) / self.radians
            way = (actions[..., :3] - now[:, None, :3]) / self.metres
            return torch.cat([way, vector.to(way), 2 * actions[..., 7:] - 1], dim=-1)

    def decode(self, numbers: Float[Tensor, "b a 7"], now: Float[Tensor, "b 8"]) -> Float[Tensor, "b a 8"]:
        """The inverse of `encode`; the openness is kept within [0, 1]."""
        with full_precision(numbers.device):
            numbers = numbers.float()
            turn = rotation_from_vector(self.radians * numbers[..., 3:6].double())
            turned = turn @ rotation_from_quaternion(now[:, None, 3:7].double())
            quaternion = continuous_quaternions(quaternion_from_rotation(turned)).float()
            position = now[:, None, :3] + self.metres * numbers[..., :3]
            openness = (numbers[..., 6:] / 2 + 0.5).clamp(0, 1)
            return torch.cat([position, quaternion, openness], dim=-1)
