"""Solvers on a problem whose answer is known: Gaussian data, whose best estimate is linear."""

import pytest
import torch

from ai_wam.diffusion.noise_paths import EDM, FlowMatching, NoisePath, VariancePreserving
from ai_wam.diffusion.solvers import Solver, integrate

SPREAD = 0.7  # standard deviation of the data
PATHS = [FlowMatching(sampler_shift=3.0), EDM(), VariancePreserving()]


def solve(path: NoisePath, steps: int, solver: Solver) -> float:
    """Where the sample z = 1 at pure noise ends; the exact flow leads to SPREAD."""
    seen = []

    def denoise(z: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(float(u[0]))
        a, b = (part.double().view(-1, 1, 1, 1, 1) for part in path.coefficients(u.double()))
        clean = a * SPREAD**2 / (a**2 * SPREAD**2 + b**2) * z
        return clean, (z - a * clean) / b

    start = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    end = float(integrate(path, denoise, lambda z: z, start, steps, solver))
    assert len(seen) == (2 * steps - 1 if solver == "heun" else steps)
    return end


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("solver", ["heun", "dpm++2m"])
def test_second_order_solvers_are_nearer(path: NoisePath, solver: Solver):
    errors = [abs(solve(path, 80, each) - SPREAD) for each in (solver, "euler")]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(("solver", "wanted"), [("euler", 2), ("heun", 4), ("dpm++2m", 4)])
def test_order_of_convergence(solver: Solver, wanted: float):
    """On EDM's grid, whose last step (always an Euler step) is too short to be seen."""
    errors = [abs(solve(EDM(), steps, solver) - SPREAD) for steps in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(wanted, rel=0.3)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm++2m"])
def test_one_step_is_the_first_estimate(solver: Solver):
    start = torch.full((1, 1, 1, 1, 1), 5.0)
    found = integrate(FlowMatching(), lambda z, u: (z * 0 + 3, z), lambda z: z, start, 1, solver)
    assert float(found) == 3


def test_given_positions_are_held_at_every_evaluation():
    given = torch.tensor([True, False]).view(1, 1, 1, 1, 2)

    def hold(z: torch.Tensor) -> torch.Tensor:
        return torch.where(given, torch.tensor(7.0), z)

    def denoise(z: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert float(z[..., 0]) == 7
        return z * 0.5, z

    for solver in ("euler", "heun", "dpm++2m"):
        found = integrate(FlowMatching(), denoise, hold, torch.ones(1, 1, 1, 1, 2), 3, solver)
        assert float(found[..., 0]) == 7
