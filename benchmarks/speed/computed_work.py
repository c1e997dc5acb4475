"""What a released size has to compute, from shapes alone: nothing is run and no memory taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from backbones.base import VideoBackbone
from benchmarks.speed.measuring import canvas_of, fitting_size, flops, whole_clip
from benchmarks.speed.released_sizes import build

EXECUTED = 9  # frames of a clip that are executed, and so decoded


@dataclass(frozen=True)
class Work:
    """Work of one row: two views of one clip.

    Attributes:
        model: on the meta device.
        parameters: of the denoiser.
        tokens: of the canvas, by plan.
        forward: floating-point operations of one forward of the denoiser, by plan.
        encode: of one clip through the video autoencoder.
        decode_beginning: of the executed frames of one clip, or of all where the decoder looks ahead.
        decode: of one whole clip.
    """

    model: VideoBackbone
    parameters: int
    tokens: dict[str, int]
    forward: dict[str, float]
    encode: float
    decode_beginning: float
    decode: float


def computed_work(name: str, plans: Sequence[str], size: tuple[int, int], frames: int) -> Work:
    """The work of a released size.

    Args:
        name: as its YAML is called.
        plans: whose canvases are counted.
        size: height and width in pixels; another where the model takes only that.
        frames: of a clip; the next number that the model takes.
    """
    with torch.device("meta"):
        model = build(name)
        spec, u = model.spec, torch.zeros(1)
        frames, size = whole_clip(spec, frames), fitting_size(spec, size)
        tokens, forward = {}, {}
        for each in plans:
            canvas, context = canvas_of(model, each, size, frames)
            _, _, f, h, w = canvas.clean.shape
            tokens[each] = f * h * w // (spec.patch**2 * spec.patch_time)
            forward[each] = flops(partial(model.predict, canvas.clean, u, canvas, context))
        encode = flops(partial(model.codec.encode, torch.zeros(1, 3, frames, *size)))
        # The beginning that is executed, as `VideoBackbone.decode` decodes it.
        beginning = frames if model.codec.causal == "encoder" else whole_clip(spec, EXECUTED)
        decoding = {}
        for length in {beginning, frames}:
            latents = torch.zeros(1, spec.channels, spec.latent_frames(length), *spec.grid(size))
            decoding[length] = flops(partial(model.codec.decode, latents))
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    return Work(model, parameters, tokens, forward, encode, decoding[beginning], decoding[frames])
