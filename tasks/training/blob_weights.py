"""Weights of the loss by position: a blob covers few positions of an action image, the rest is background."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ai_wam.canvas import Canvas, Kind
from ai_wam.types import LatentSpec


def blob_weights(
    weight: float,
    pixels: Float[Tensor, "b v t n 2"],
    radii: Sequence[float],
    canvas: Canvas,
    spec: LatentSpec,
) -> Float[Tensor, "b 1 f h w"]:
    """1 for positions of a video; for those of an action segment, more under its blobs than beside them.

    The mean over the positions of a row's action segments that count is 1, so the loss of actions keeps its
    share against that of video.

    Args:
        weight: of a position under a blob, against one of the background.
        pixels: where the blobs of every video frame are, x right and y down, the first pixel's centre at
            0.5; NaN for those that are not drawn.
        radii: of the part of each of the n blobs that is seen, in pixels.
        canvas: whose loss is weighted.
        spec: of its latents.
    """
    near, counted = _near_blobs(pixels, radii, canvas, spec), canvas.unpack(canvas.counted)
    parts, total, count = [], canvas.clean.new_zeros(len(near)), canvas.clean.new_zeros(len(near))
    for segment, counts in zip(canvas.segments, counted, strict=True):
        part = torch.ones_like(counts, dtype=canvas.clean.dtype)
        if segment.kind is Kind.ACTION:
            part = part + (weight - 1) * near[:, segment.view, None, : segment.length]
            total, count = total + (part * counts).flatten(1).sum(1), count + counts.flatten(1).sum(1)
        parts.append(part)
    mean = torch.where(count > 0, total / count.clamp(min=1), 1).view(-1, 1, 1, 1, 1)
    scaled = [
        part / mean if segment.kind is Kind.ACTION else part
        for segment, part in zip(canvas.segments, parts, strict=True)
    ]
    return canvas.packed(scaled)


def _near_blobs(
    pixels: Float[Tensor, "b v t n 2"], radii: Sequence[float], canvas: Canvas, spec: LatentSpec
) -> Bool[Tensor, "b v l h w"]:
    """Which latent positions hold a visible part of a blob in any of their video frames."""
    rows, columns = canvas.unpack(canvas.given)[0].shape[-2:]
    across = _distance(pixels[..., 0], columns, spec.spatial_stride)[..., None, :]
    down = _distance(pixels[..., 1], rows, spec.spatial_stride)[..., :, None]
    radius = pixels.new_tensor(radii)[:, None, None]
    near = (across.square() + down.square() <= radius.square()).any(3)  # NaN is near nothing
    later = near[:, :, 1:].unflatten(2, (-1, spec.temporal_stride)).any(3)
    return torch.cat([near[:, :, :1], later], dim=2)


def _distance(place: Float[Tensor, "*n"], cells: int, stride: int) -> Float[Tensor, "*n cells"]:
    """Pixels from a coordinate to each of the cells along one side of an image; 0 within a cell."""
    start = stride * torch.arange(cells, dtype=place.dtype, device=place.device)
    away = torch.maximum(start - place[..., None], place[..., None] - (start + stride))
    return away.clamp(min=0)
