"""Every backbone computes in float32 what must be, whatever the autocast."""

from functools import partial
from typing import Any

import torch
from backbone_twins import awaken, canvas_of, inputs

from backbones.base import VideoBackbone


def in_float32(value: Any) -> Any:
    """The same arguments, floating ones in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float32
    if isinstance(value, dict):
        return {name: in_float32(part) for name, part in value.items()}
    return tuple(map(in_float32, value)) if isinstance(value, tuple) else value


def test_time_norms_positions_and_conditions_stay_in_float32(backbone: VideoBackbone):
    """What these modules make under autocast is what they make of the same in float32, rounded once."""
    awaken(backbone)
    told, calls = backbone.fp32_modules(), {}
    modules = dict(backbone.denoiser.named_modules())
    leaves = {name: module for name, module in modules.items() if not list(module.children())}
    norms = {name: module for name, module in leaves.items() if type(module).__name__.endswith("Norm")}
    watched = {**norms, **told}
    assert {name.rpartition(".")[2] for name in told} > {"extra", "modulate"}
    for name, module in modules.items():
        if type(module).__name__.endswith("TimestepEmbedding"):
            assert any(name == island or name.startswith(f"{island}.") for island in told), name

    def note(name: str, _: Any, args: Any, options: Any, made: Any) -> None:
        parts = made if isinstance(made, tuple) else (made,)
        calls.setdefault(name, (args, options, [part.clone() for part in parts]))  # some are written into

    hooks = [
        module.register_forward_hook(partial(note, name), with_kwargs=True)
        for name, module in watched.items()
    ]
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        backbone.predict(noise, torch.tensor([0.7, 0.3]), canvas, context)
    for hook in hooks:
        hook.remove()
    assert set(told) <= set(calls)
    for name, (args, options, made) in calls.items():
        with torch.no_grad():
            exact = watched[name](*in_float32(args), **in_float32(options))
        for found, wanted in zip(made, exact if isinstance(exact, tuple) else (exact,), strict=True):
            equal = float((found == wanted.to(found.dtype)).float().mean())
            assert equal == 1 if name in told else equal > 0.99, name  # torch's norms: not to the last bit


def test_half_precision_changes_little_and_the_loss_not_at_all(backbone: VideoBackbone):
    awaken(backbone)
    canvas = canvas_of(backbone, "joint")
    context, noise = inputs(backbone, canvas)
    u = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        exact = backbone.loss(canvas, context, u, noise)
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone.loss(canvas, context, u, noise)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.03, atol=0)
