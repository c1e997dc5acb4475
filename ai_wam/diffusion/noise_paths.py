"""Gaussian noise paths z = a(u) x0 + b(u) eps from clean (u = 0) to pure noise (u = 1), without a network.

Flow matching, variance-preserving v-prediction and EDM differ in four things only: the coefficients, what the
network predicts, its time argument, and which times are drawn in training. Everything else
(loss, sampling) is written once over these. All of them invert linearly, so one step z' = a' x0 + b' eps
equals diffusers' FlowMatchEulerDiscreteScheduler, CogVideoXDDIMScheduler and EulerDiscreteScheduler.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers


@dataclass(frozen=True)
class TimeSampling:
    """Noise levels drawn in training: logit-normal, shifted towards noise, with an atom at pure noise.

    Attributes:
        mean: of the logit; 0 puts half of the mass above u = 0.5.
        std: of the logit.
        shift: u -> shift u / (1 + (shift - 1) u), as resolution shifts of flow models do.
        pure_noise: share of samples at u = 1 exactly, where a sampler starts.
        within: the levels that are drawn, relatively as often as if all were; for networks that share a path.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    pure_noise: float = 0.0
    within: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_numbers("TimeSampling", mean=self.mean)
        check_numbers("TimeSampling", at_least=0, std=self.std)
        check_numbers("TimeSampling", above=0, shift=self.shift)
        check_numbers("TimeSampling", at_least=0, at_most=1, pure_noise=self.pure_noise)

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """Noise levels of n samples, on the generator's device."""
        device = generator.device
        normal = torch.randn(n, generator=generator, device=device)
        if self.within != (0.0, 1.0):
            normal = self._squeezed(normal)
        u = shifted((normal * self.std + self.mean).sigmoid(), self.shift).clamp(*self.within)
        if self.within[1] < 1:
            return u
        pure = torch.rand(n, generator=generator, device=device) < self.pure_noise
        return torch.where(pure, 1.0, u)

    def _squeezed(self, normal: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Normal numbers as they are distributed where u lies within the bounds, by their quantiles."""
        bounds = shifted(torch.tensor(self.within, dtype=torch.float64), 1 / self.shift).logit()
        low, high = torch.special.ndtr((bounds - self.mean) / self.std).tolist()
        quantile = low + (high - low) * torch.special.ndtr(normal.double())
        return torch.special.ndtri(quantile).to(normal)


@dataclass(frozen=True)
class NoisePath(ABC):
    """A path and how a network walks it.

    Attributes:
        sampling: noise levels drawn in training.
        sampler_shift: shift of the sampler's step grid.
    """

    sampling: TimeSampling = field(default_factory=TimeSampling)
    sampler_shift: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(type(self).__name__, above=0, sampler_shift=self.sampler_shift)

    @abstractmethod
    def coefficients(self, u: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """a(u) of the clean latents and b(u) of the noise."""

    @abstractmethod
    def target(
        self, clean: Float[Tensor, "*n"], noise: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> Float[Tensor, "*n"]:
        """What the network predicts natively; u broadcasts against the latents."""

    @abstractmethod
    def invert(
        self, prediction: Float[Tensor, "*n"], noisy: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """Clean latents and noise that a native prediction stands for."""

    @abstractmethod
    def model_time(self, u: Float[Tensor, "*n"]) -> Tensor:
        """The time argument the pretrained network knows for a noise level."""

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """Noise levels of n training samples, on the generator's device."""
        return self.sampling.draw(n, generator)

    def weight(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Weight of a sample's loss; 1 unless the model was trained otherwise."""
        return torch.ones_like(u)

    def add_noise(
        self, clean: Float[Tensor, "*n"], noise: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> Float[Tensor, "*n"]:
        """Noisy latents z = a(u) clean + b(u) noise; u broadcasts against the latents."""
        a, b = self.coefficients(u)
        return a * clean + b * noise

    def noise_from_clean(
        self, clean: Float[Tensor, "*n"], noisy: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> Float[Tensor, "*n"]:
        """The noise in z where the network predicts the clean latents directly, u > 0."""
        a, b = self.coefficients(u)
        return (noisy - a * clean) / b

    def grid(self, steps: int) -> Float[Tensor, "n"]:
        """The sampler's noise levels: steps + 1 values from 1 down to 0."""
        if steps < 1:
            raise InvalidValue(f"a sampler needs at least 1 step, got {steps}")
        return shifted(torch.linspace(1, 0, steps + 1), self.sampler_shift)


@dataclass(frozen=True)
class FlowMatching(NoisePath):
    """Straight lines: z = (1 - u) x0 + u eps, prediction eps - x0 (Wan; arXiv 2210.02747).

    Attributes:
        weighting: "bell" weighs samples by exp(-2 (u - 1/2)^2), moved to 0 at pure noise and scaled to a mean
            of 1 over uniform u, as the released Action Images model was trained.
    """

    weighting: Literal["uniform", "bell"] = "uniform"

    # Mean of exp(-2 (u - 1/2)^2) over uniform u: sqrt(pi / 2) erf(1 / sqrt(2)).
    BELL_MEAN = 0.85562439

    def weight(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """1, or the bell."""
        if self.weighting == "uniform":
            return torch.ones_like(u)
        lowest = math.exp(-0.5)
        return (torch.exp(-2 * (u - 0.5) ** 2) - lowest) / (self.BELL_MEAN - lowest)

    def coefficients(self, u: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """1 - u and u."""
        return 1 - u, u

    def target(
        self, clean: Float[Tensor, "*n"], noise: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> Float[Tensor, "*n"]:
        """The velocity eps - x0."""
        return noise - clean

    def invert(
        self, prediction: Float[Tensor, "*n"], noisy: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """x0 = z - u v and eps = z + (1 - u) v."""
        return noisy - u * prediction, noisy + (1 - u) * prediction

    def model_time(self, u: Float[Tensor, "*n"]) -> Tensor:
        """1000 u."""
        return 1000 * u


class VelocityPath(NoisePath):
    """A variance-preserving path, a^2 + b^2 = 1, whose target is the velocity v = a eps - b x0."""

    def target(
        self, clean: Float[Tensor, "*n"], noise: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> Float[Tensor, "*n"]:
        """The velocity a eps - b x0."""
        a, b = self.coefficients(u)
        return a * noise - b * clean

    def invert(
        self, prediction: Float[Tensor, "*n"], noisy: Float[Tensor, "*n"], u: Float[Tensor, "*m"]
    ) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """x0 = a z - b v and eps = b z + a v."""
        a, b = self.coefficients(u)
        return a * noisy - b * prediction, b * noisy + a * prediction


@dataclass(frozen=True)
class VariancePreserving(VelocityPath):
    """Discrete variance-preserving path with v-prediction (CogVideoX; arXiv 2202.00512).

    The 1,000 training steps follow diffusers' CogVideoXDDIMScheduler: scaled-linear betas, the
    signal-to-noise ratio divided by `snr_shift`, rescaled so that the last step is pure noise. u = (t + 1) /
    1000 for step t; u = 0 is clean.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.0120
    snr_shift: float = 3.0

    STEPS = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        betas = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        check_numbers("VariancePreserving", above=0, at_most=1, **betas)
        check_numbers("VariancePreserving", above=0, snr_shift=self.snr_shift)

    @cached_property
    def _alphas(self) -> Float[Tensor, "n"]:
        """a(u) at u = 0, 1/1000, ..., 1."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.STEPS, dtype=torch.float64) ** 2
        squares = (1 - betas).cumprod(0)
        squares = squares / (self.snr_shift + (1 - self.snr_shift) * squares)
        roots = squares.sqrt()
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        return torch.cat([torch.ones(1, dtype=torch.float64), roots])

    def _index(self, u: Tensor) -> Tensor:
        return (u * self.STEPS).round().long()

    def coefficients(self, u: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """Square roots of the cumulative alpha and of its complement, at the nearest of the 1,000 steps."""
        a = self._alphas.to(u.device)[self._index(u)]
        return a.to(u.dtype), (1 - a * a).clamp(min=0).sqrt().to(u.dtype)

    def model_time(self, u: Float[Tensor, "*n"]) -> Tensor:
        """The training step, 0 to 999."""
        return (self._index(u) - 1).clamp(min=0)


@dataclass(frozen=True)
class EDM(VelocityPath):
    """Continuous noise scales with preconditioning (Stable Video Diffusion; arXiv 2206.00364).

    What the preconditioned network sees of x = x0 + s eps is z = x / sqrt(1 + s^2), and its raw output is
    the velocity of that variance-preserving path, so EDM is one more path. u walks Karras's grid: s rises
    from sigma_min at u = CLEAN to sigma_max at u = 1; below CLEAN it falls to 0 in a straight line. Pure
    noise still holds 1 / sigma_max of the clean latents, as in the released model.

    Attributes:
        sigma_min: smallest noise scale.
        sigma_max: largest noise scale.
        rho: bend of the grid.
        log_mean: training draws ln s from a normal distribution of this mean,
        log_std: and this standard deviation; `sampling` contributes its share of pure noise.
    """

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    log_mean: float = 0.7
    log_std: float = 1.6

    CLEAN = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("EDM", above=0, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        check_numbers("EDM", at_least=0, log_std=self.log_std)
        check_numbers("EDM", log_mean=self.log_mean)

    def sigma(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The noise scale s."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        ramp = ((u - self.CLEAN) / (1 - self.CLEAN)).clamp(min=0)
        return torch.where(
            u < self.CLEAN, self.sigma_min * u / self.CLEAN, (low + ramp * (high - low)) ** self.rho
        )

    def coefficients(self, u: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """1 / sqrt(1 + s^2) and s / sqrt(1 + s^2)."""
        sigma = self.sigma(u)
        a = (1 + sigma**2).rsqrt()
        return a, sigma * a

    def model_time(self, u: Float[Tensor, "*n"]) -> Tensor:
        """ln(s) / 4; the smallest noise scale for what is clean."""
        return self.sigma(u).clamp(min=self.sigma_min).log() / 4

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
        """Log-normal noise scales within the grid, and the share of pure noise."""
        pure = self.sampling.draw(n, generator) == 1
        log = torch.randn(n, generator=generator, device=generator.device) * self.log_std + self.log_mean
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        ramp = (log.exp().clamp(self.sigma_min, self.sigma_max) ** (1 / self.rho) - low) / (high - low)
        return torch.where(pure, 1.0, self.CLEAN + (1 - self.CLEAN) * ramp)

    def grid(self, steps: int) -> Float[Tensor, "n"]:
        """Karras's noise scales from sigma_max to sigma_min, then clean."""
        if steps < 1:
            raise InvalidValue(f"a sampler needs at least 1 step, got {steps}")
        levels = shifted(torch.linspace(1, 0, steps), self.sampler_shift)
        return torch.cat([self.CLEAN + (1 - self.CLEAN) * levels, torch.zeros(1)])


def shifted(u: Float[Tensor, "*n"], shift: float) -> Float[Tensor, "*n"]:
    """Noise levels moved towards noise (shift > 1); 0 and 1 stay where they are."""
    return shift * u / (1 + (shift - 1) * u)
