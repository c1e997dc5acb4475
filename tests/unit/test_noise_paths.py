"""Noise paths against diffusers' schedulers, and as inverses of themselves."""

from itertools import pairwise

import pytest
import torch
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from ai_wam.diffusion.noise_paths import (
    EDM,
    FlowMatching,
    NoisePath,
    TimeSampling,
    VariancePreserving,
    shifted,
)

PATHS = [
    FlowMatching(),
    FlowMatching(sampler_shift=5.0),
    VariancePreserving(),
    VariancePreserving(snr_shift=1.0),
    EDM(),
]


def level(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("u", [0.001, 0.2, 0.5, 0.9, 1.0])
def test_target_and_invert_are_inverse(path: NoisePath, u: float):
    clean, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    noisy = path.add_noise(clean, noise, level(u))
    found = path.invert(path.target(clean, noise, level(u)), noisy, level(u))
    torch.testing.assert_close(found[0], clean, atol=1e-9, rtol=0)
    torch.testing.assert_close(found[1], noise, atol=1e-9, rtol=0)
    torch.testing.assert_close(path.noise_from_clean(clean, noisy, level(u)), noise, atol=1e-9, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_ends_are_clean_and_pure_noise(path: NoisePath):
    grid = path.grid(7)
    assert (grid[0], grid[-1]) == (1, 0)
    assert all(after < now for now, after in pairwise(grid.tolist()))
    a, b = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (float(a[0]), float(b[0])) == (1, 0)
    left = 1 / 700 if isinstance(path, EDM) else 0  # EDM's largest noise scale leaves a trace
    assert float(a[1]) == pytest.approx(left, rel=1e-5)
    assert float(b[1]) == pytest.approx(1, abs=1e-5)


def test_step_equals_flow_match_euler():
    path, g = FlowMatching(), torch.Generator().manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    levels = shifted(torch.linspace(1, 0, 6), 5.0)
    scheduler.set_timesteps(sigmas=levels[:-1].tolist())
    z = torch.randn(2, 3, generator=g)
    ours = z.clone()
    for index, (now, after) in enumerate(pairwise(levels)):
        velocity = torch.randn(2, 3, generator=g)
        z = scheduler.step(velocity, scheduler.timesteps[index], z, return_dict=False)[0]
        clean, eps = path.invert(velocity, ours, now)
        ours = path.add_noise(clean, eps, after)
    torch.testing.assert_close(ours, z, atol=2e-6, rtol=0)


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_step_equals_cogvideox_ddim(snr_shift: float):
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    path, g = VariancePreserving(snr_shift=snr_shift), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, generator=g)
    times = torch.tensor([0, 499, 999])
    for t in times:
        u = (t + 1) / 1000
        torch.testing.assert_close(
            path.add_noise(clean, noise, u), scheduler.add_noise(clean, noise, t[None]), atol=2e-6, rtol=0
        )
        assert int(path.model_time(u)) == int(t)
    z = ours = noise
    for t in scheduler.timesteps:
        velocity = torch.randn(2, 3, generator=g)
        z = scheduler.step(velocity, t, z, return_dict=False)[0]
        now, after = (t + 1) / 1000, (t + 1 - 100) / 1000
        found = path.invert(velocity, ours, now)
        # The last step ends at alpha = 1, as u = 0 does: `set_alpha_to_one` is diffusers' default.
        ours = path.add_noise(*found, after)
    torch.testing.assert_close(ours, z, atol=2e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and NumPy 2
def test_step_equals_euler_discrete():
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        interpolation_type="linear",
    )
    scheduler.set_timesteps(10)
    path, g = EDM(), torch.Generator().manual_seed(0)
    levels = path.grid(10)
    torch.testing.assert_close(path.sigma(levels), scheduler.sigmas, atol=0, rtol=2e-5)
    torch.testing.assert_close(path.model_time(levels[:-1]), scheduler.timesteps, atol=2e-6, rtol=2e-6)
    # Theirs holds x = x0 + s eps, which grows to 700; ours what the network sees of it.
    ours = torch.randn(2, 3, generator=g)
    theirs = ours * (1 + scheduler.sigmas[0] ** 2).sqrt()
    for index, (now, after) in enumerate(pairwise(levels)):
        velocity = torch.randn(2, 3, generator=g)
        seen = scheduler.scale_model_input(theirs, scheduler.timesteps[index])
        torch.testing.assert_close(ours, seen, atol=2e-6, rtol=0)
        theirs = scheduler.step(velocity, scheduler.timesteps[index], theirs, return_dict=False)[0]
        ours = path.add_noise(*path.invert(velocity, ours, now), after)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_edm_draws_lognormal_scales():
    path = EDM(sampling=TimeSampling(pure_noise=0.2))
    u = path.draw(20_000, torch.Generator().manual_seed(1))
    assert float((u == 1).float().mean()) == pytest.approx(0.2, abs=0.01)
    log = path.sigma(u[u < 1].double()).log()
    assert float(log.mean()) == pytest.approx(0.7, abs=0.05)
    assert float(log.std()) == pytest.approx(1.6, abs=0.05)


def test_the_bell_weighs_the_middle_and_averages_to_one():
    u = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    weight = FlowMatching(weighting="bell").weight(u)
    assert float(weight.mean()) == pytest.approx(1, abs=1e-4)
    assert float(weight[0]) == pytest.approx(0, abs=1e-6)
    assert int(weight.argmax()) == 50_000
    assert torch.equal(FlowMatching().weight(u), torch.ones_like(u))


def test_drawn_levels():
    sampling = TimeSampling(mean=1.0, std=1.2, pure_noise=0.15)
    u = sampling.draw(20_000, torch.Generator().manual_seed(1))
    assert 0 < float(u.min()) < 0.2
    assert float((u == 1).float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float(u[u < 1].logit().mean()) == pytest.approx(1.0, abs=0.05)
    again = sampling.draw(20_000, torch.Generator().manual_seed(1))
    assert torch.equal(u, again)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        FlowMatching().grid(0)
