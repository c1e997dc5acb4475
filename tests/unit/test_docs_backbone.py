"""The backbone of docs/add_backbone.md computes what diffusers' own network does."""

import pytest
import torch
from backbone_twins import build, canvas_of, inputs
from diffusers import SkyReelsV2Transformer3DModel
from documented import ADD_BACKBONE


@pytest.mark.parametrize("time", ["per_frame", "shared"])
def test_a_forward_is_that_of_the_genuine_network(time: str):
    backbone = build(ADD_BACKBONE, f"time={time}", "architecture.num_layers=2")
    genuine = SkyReelsV2Transformer3DModel.from_config(dict(backbone.denoiser.config))
    weights = {name.replace(".base.", "."): value for name, value in backbone.denoiser.state_dict().items()}
    genuine.load_state_dict({name: weights[name] for name in genuine.state_dict()})
    canvas = canvas_of(backbone, "policy")
    context, noise = inputs(backbone, canvas)
    given = canvas.given[:, 0, :, 0, 0]
    assert given.any()
    u = torch.tensor([0.7, 0.3])
    times = torch.where(given, 0, 1000 * u[:, None]) if time == "per_frame" else 1000 * u
    with torch.no_grad():
        found = backbone.predict(noise, u, canvas, context)
        expected = genuine(noise, times, context.tokens, enable_diffusion_forcing=times.ndim == 2).sample
    assert torch.equal(found, expected)
