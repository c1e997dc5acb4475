"""Solvers that walk a noise path from pure noise to clean latents, without state between calls.

A step under a constant estimate x0 of the clean latents is z' = (b'/b) z + (a' - a b'/b) x0, which equals
a' x0 + b' eps. The solvers differ in the estimate: Euler takes the one at hand; Heun goes there, looks again
and takes the mean of both; DPM-Solver++(2M) (arXiv 2211.01095) carries on the line through the last two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from ai_wam.diffusion.noise_paths import NoisePath
from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers

Solver = Literal["euler", "heun", "dpm++2m"]
Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sampling:
    """How a prediction is sampled.

    Attributes:
        steps: of the path's grid; Heun evaluates the network twice in all but the last one.
        guidance: scale of classifier-free guidance; 1 is off.
        solver: how a step estimates the clean latents.
    """

    steps: int = 4
    guidance: float = 1.0
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        check_numbers("sampling", at_least=1, steps=self.steps)
        check_numbers("sampling", at_least=0, guidance=self.guidance)
        if self.solver not in get_args(Solver):
            raise InvalidValue(
                f"sampling: solver {self.solver!r} is unknown; choose one of {', '.join(get_args(Solver))}"
            )


def integrate(
    path: NoisePath,
    denoise: Denoise,
    hold: Callable[[Tensor], Tensor],
    start: Float[Tensor, "b *n"],
    steps: int,
    solver: Solver = "euler",
) -> Float[Tensor, "b *n"]:
    """Walk the path's grid from pure noise to clean.

    Args:
        path: coefficients and grid.
        denoise: (z, u "b") -> the clean latents and the noise seen in z.
        hold: puts given positions back after every step.
        start: latents at u = 1.
        steps: steps of the grid; Heun evaluates the network twice in all but the last one.
        solver: which estimate of the clean latents a step goes by.
    """
    z = hold(start)
    last: tuple[float, Tensor] | None = None  # log signal-to-noise ratio and clean latents of the step before
    for index, (now, after) in enumerate(pairwise(path.grid(steps))):  # on the CPU: no device is waited for
        clean, eps = denoise(z, now.to(z.device).expand(len(z)))
        a, b = path.coefficients(now)
        a_next, b_next = path.coefficients(after)
        if solver == "euler" or index == steps - 1:
            z = hold(a_next * clean + b_next * eps)
            continue
        estimate = clean
        if solver == "heun":
            ahead = hold(a_next * clean + b_next * eps)
            estimate = (clean + denoise(ahead, after.to(z.device).expand(len(z)))[0]) / 2
        elif last is not None:
            log_now, log_next = _log_ratio(a, b), _log_ratio(a_next, b_next)
            ratio = (log_next - log_now) / (log_now - last[0])
            estimate = clean + (clean - last[1]) * (ratio / 2)
        last = (_log_ratio(a, b), clean)
        z = hold(b_next / b * z + (a_next - a * b_next / b) * estimate)
    return z


def _log_ratio(a: Float[Tensor, ""], b: Float[Tensor, ""]) -> float:
    """Half the logarithmic signal-to-noise ratio, -inf at pure noise."""
    return math.log(float(a) / float(b)) if float(a) > 0 else -math.inf
