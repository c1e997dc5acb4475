"""Finding one Gaussian blob per image, with the precision of each find.

A matched filter on a thinned-out image gives the place to about a tenth of the blob's width; a least-squares
fit of amplitude * blob + background in a window around it gives the rest. The fit, not a centroid: a centroid
over the whole image is drawn to the middle by any haze or noise. Blobs cut by the border are fitted where
they are seen.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ai_wam.action_images.blob_drawing import PEDESTAL, gaussian

_ROWS = 1.6  # rows and candidates per blob width; the response is a smooth blob, 1.4 times as wide
_COLUMNS = 3.2  # columns per blob width: reading a row costs more than reading on in it
_WINDOW = 2.0  # half side of the fitted square in blob widths: holds 95 % of the information on the centre
_DISC = PEDESTAL + 0.02  # on a pedestal only pixels whose blob is above this are fitted, a disc of
_DISC_WINDOW = 1.75  # 1.62 blob widths
_STEPS, _MORE_STEPS = 3, 5  # the second number where the first was not enough: blobs cut by the border
_SETTLED = 0.02  # blob widths of the last step; the error left is about its square
_SMALLEST_STD = 1e-4  # pixels; keeps perfect images from claiming infinite precision
_OUTSIDE = 0.5  # a centre is accepted up to so many blob widths outside the image
_MIN_SIGNAL = 5.0  # amplitude over its own standard deviation; the best of pure noise reaches about 4
_OPENNESS_SAMPLES = 1024  # background pixels read per image


class Blobs(NamedTuple):
    """What was found in n images.

    Attributes:
        pixels: x (right) and y (down) of the centres, "n 2", float64.
        information: inverse covariance of `pixels`, "n 2 2", 1 / pixels^2, zero where not seen.
        amplitude: fitted height of the blob, "n"; 1 where drawn by the tokenizer.
        seen: whether there is a blob, "n".
        finite: False where NaN or infinite pixels hide the blob's surroundings or most of the image, "n".
    """

    pixels: Tensor
    information: Tensor
    amplitude: Tensor
    seen: Tensor
    finite: Tensor


class _Windows(NamedTuple):
    """Cut-outs "m k l", 1 where their pixels are finite (else 0), and the pixels' indices "m k", "m l"."""

    values: Tensor
    known: Tensor
    y: Tensor
    x: Tensor


class _Fit(NamedTuple):
    """Weighted linear least squares around `center` "m 2" for amplitude, background, amplitude * (dx, dy).

    `basis_y` and `basis_x` "m 3 k" hold profiles (blob, its derivative by the centre, constant), `weight` "m
    k l" the pixels' weights, `normal` "m 4 4" and `solution` "m 4" the rest.
    """

    center: Tensor
    basis_y: Tensor
    basis_x: Tensor
    weight: Tensor
    normal: Tensor
    solution: Tensor


def find_blobs(
    images: Shaped[Tensor, "n h w"],
    on_pedestal: Bool[Tensor, "n"],
    std: float,
    pixel_center: float,
    min_amplitude: float,
) -> Blobs:
    """Find the most prominent blob of known width in every image.

    Args:
        images: float (of any precision) in [0, 1], or uint8.
        on_pedestal: images whose blob is replaced by a constant wherever it is at most PEDESTAL.
        std: width of the blobs in pixels.
        pixel_center: coordinate of the centre of pixel 0.
        min_amplitude: fits lower than this are not called seen.
    """
    start, mostly_finite = _coarse(images, std)
    result = Blobs(
        start.new_zeros(start.shape),
        start.new_zeros(*start.shape, 2),
        start.new_zeros(len(start)),
        torch.zeros_like(mostly_finite),
        mostly_finite,
    )
    for disc in (False, True):
        chosen = torch.nonzero(on_pedestal == disc).squeeze(-1)
        if len(chosen):
            found = _fit(images, chosen, start[chosen], std, disc, min_amplitude)
            for whole, part in zip(result, found, strict=True):
                whole[chosen] = part & mostly_finite[chosen] if whole.dtype == torch.bool else part
    seen = result.seen[:, None]
    return result._replace(
        pixels=result.pixels + pixel_center,
        information=torch.where(seen[..., None], result.information, 0),
    )


def enlarged(blobs: Blobs, scale: float, pixel_center: float) -> Blobs:
    """Blobs found in small images, as they lie in images `scale` times as large.

    Args:
        blobs: as found.
        scale: pixels of the large image per pixel of the small one.
        pixel_center: coordinate of the centre of pixel 0, in both.
    """
    pixels = (blobs.pixels - pixel_center + 0.5) * scale - 0.5 + pixel_center
    return blobs._replace(pixels=pixels, information=blobs.information / scale**2)


def background_level(images: Shaped[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Median over a grid of pixels: a blob covers 2 % of the image and cannot move it. NaN if all are."""
    h, w = images.shape[-2:]
    step = max(1, int(math.sqrt(h * w / _OPENNESS_SAMPLES)))
    values = _unit_range(images[..., step // 2 :: step, step // 2 :: step].flatten(-2))
    return values.masked_fill(~values.isfinite(), torch.nan).nanmedian(dim=-1).values


def _unit_range(values: Tensor) -> Tensor:
    """Float32 in [0, 1] of floats or of uint8."""
    return values.float() if values.is_floating_point() else values.float() / 255


def _coarse(images: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Pixel indices (x, y) of the best response to a blob, "n 2", and whether most pixels are finite, "n"."""
    h, w = images.shape[-2:]
    down, across = max(1, int(std / _ROWS)), max(1, int(std / _COLUMNS))
    thin, share = _heal(_unit_range(images[:, down // 2 :: down, across // 2 :: across]))
    thin = thin - thin.mean(dim=(-2, -1), keepdim=True)
    column, y = _templates(h, down, std, thin)
    row, x = _templates(w, across, std, thin)
    response = column @ (thin @ row.T)
    best = response.flatten(1).argmax(dim=-1)
    iy, ix = best // len(x), best % len(x)
    step = y[1] - y[0] if len(y) > 1 else y.new_tensor(0.0)
    index = torch.arange(len(images), device=images.device)
    start_x = x[ix] + step * _vertex(response[index, iy], ix)
    start_y = y[iy] + step * _vertex(response[index, :, ix], iy)
    return torch.stack([start_x, start_y], dim=-1).double(), share.mean(dim=(-2, -1)) > 0.5


def _heal(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values "m k l" with zeros where they were NaN or infinite, and 1 where they were not, else 0."""
    finite = torch.ones_like(values)
    broken = torch.nonzero(~values.sum(dim=(-2, -1)).isfinite()).squeeze(-1)
    if len(broken):  # rare, and testing every pixel costs more than summing them
        finite[broken] = values[broken].isfinite().to(values.dtype)
        values = values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return values, finite


def _templates(length: int, stride: int, std: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-norm blob profiles "candidates samples" at every `stride`-th pixel; the candidates' indices."""
    samples = torch.arange(stride // 2, length, stride, dtype=like.dtype, device=like.device)
    spacing = max(1, int(std / _ROWS))
    candidates = torch.arange(spacing // 2, length, spacing, dtype=like.dtype, device=like.device)
    profile = gaussian(samples - candidates[:, None], std)
    return profile / profile.norm(dim=-1, keepdim=True), candidates


def _vertex(line: Tensor, index: Tensor) -> Tensor:
    """Offset in steps of the top of the parabola through the logarithms around `index` of each "n k" line."""
    last = line.shape[-1] - 1
    near = torch.stack([index - 1, index, index + 1], dim=-1)
    low, mid, high = line.gather(-1, near.clamp(0, last)).clamp(min=1e-6).log().unbind(-1)
    curvature = low - 2 * mid + high
    usable = (curvature < -1e-6) & (index > 0) & (index < last)
    return torch.where(usable, 0.5 * (low - high) / curvature, 0).clamp(-1, 1)


def _fit(
    images: Tensor, chosen: Tensor, start: Tensor, std: float, disc: bool, min_amplitude: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of Blobs for the chosen images; `pixels` are still indices."""
    windows = _cut(images, chosen, start, (_DISC_WINDOW if disc else _WINDOW) * std)
    fit, center, shift = _iterate(windows, start, std, disc, _STEPS)
    amplitude = fit.solution[:, 0]
    moving = torch.nonzero((shift > _SETTLED * std) & (amplitude > min_amplitude)).squeeze(-1)
    covariance = _covariance(fit, windows.values)
    if len(moving):
        some = _Windows(*(field[moving] for field in windows))
        refit, center[moving], shift[moving] = _iterate(some, center[moving], std, disc, _MORE_STEPS)
        amplitude[moving], covariance[moving] = refit.solution[:, 0], _covariance(refit, some.values)
    place = covariance[:, 2:, 2:] / amplitude.clamp(min=1e-3)[:, None, None] ** 2
    place = place + _SMALLEST_STD**2 * torch.eye(2, dtype=place.dtype, device=place.device)
    h, w = images.shape[-2:]
    limit = center.new_tensor([w, h]) - 0.5
    inside = ((center > -0.5 - _OUTSIDE * std) & (center < limit + _OUTSIDE * std)).all(-1)
    strong = (amplitude > min_amplitude) & (amplitude > _MIN_SIGNAL * covariance[:, 0, 0].clamp(min=0).sqrt())
    sharp = (place.diagonal(dim1=-2, dim2=-1).sum(-1) < std**2) & (shift < std)
    information = torch.linalg.inv_ex(place).inverse
    seen = inside & strong & sharp & information.isfinite().flatten(1).all(-1)
    finite = windows.known.mean(dim=(-2, -1)) > 0.5
    return center, information, amplitude, seen & finite, finite


def _iterate(
    windows: _Windows, start: Tensor, std: float, disc: bool, steps: int
) -> tuple[_Fit, Tensor, Tensor]:
    """The last linearised fit, the centre "m 2" it leads to, and how far in pixels "m" its last step was."""
    center = start
    for _ in range(steps):
        fit = _linear_fit(windows, center, std, disc)
        amplitude = fit.solution[:, :1]  # the solution holds the shift times the amplitude
        shift = (fit.solution[:, 2:] * amplitude / (amplitude**2 + 1e-6)).clamp(-std, std)
        center = center + shift
    return fit, center, shift.norm(dim=-1)


def _cut(images: Tensor, chosen: Tensor, start: Tensor, half: float) -> _Windows:
    """Square windows around the starts, moved to lie inside the image."""
    h, w = images.shape[-2:]
    side = 2 * math.ceil(half) + 1
    height, width = min(side, h), min(side, w)
    corner = start.round().long() - side // 2
    x, y = corner[:, 0].clamp(0, w - width), corner[:, 1].clamp(0, h - height)
    values = _unit_range(images.unfold(1, height, 1).unfold(2, width, 1)[chosen, y, x])
    if images.device.type != "cpu":
        # Accelerators may round float32 products to 10 bits, which would cost hundredths of a pixel.
        values = values.double()
    values, known = _heal(values)
    rows = y[:, None] + torch.arange(height, device=images.device)
    columns = x[:, None] + torch.arange(width, device=images.device)
    return _Windows(values, known, rows, columns)


# The fitted functions are products of a y and an x profile: blob, constant, derivative by x, derivative by y.
_IN_Y = torch.tensor([0, 2, 0, 1])
_IN_X = torch.tensor([0, 2, 1, 0])


def _linear_fit(windows: _Windows, center: Tensor, std: float, disc: bool) -> _Fit:
    basis_y, basis_x = (
        _profiles(index, middle, std, windows.values)
        for index, middle in ((windows.y, center[:, 1:]), (windows.x, center[:, :1]))
    )
    weight, weighted = windows.known, windows.values  # unknown values are zero already
    if disc:
        weight = weight * (torch.bmm(basis_y[:, :1].mT, basis_x[:, :1]) > _DISC)
        weighted = weight * windows.values
    normal = _gram(basis_y, basis_x, weight)
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    normal = normal + torch.diag_embed(1e-9 * diagonal + 1e-12)  # windows with hardly a pixel
    products = (basis_y @ weighted @ basis_x.mT).double()
    right = products[:, _IN_Y.to(weight.device), _IN_X.to(weight.device)]
    return _Fit(center, basis_y, basis_x, weight, normal, torch.linalg.solve_ex(normal, right).result)


def _profiles(index: Tensor, middle: Tensor, std: float, like: Tensor) -> Tensor:
    """Blob, derivative by its centre, and constant along a row or column of pixels, "m 3 k"."""
    offset = (index - middle) / std
    blob = torch.exp(-0.5 * offset**2)
    return torch.stack([blob, blob * offset / std, torch.ones_like(blob)], dim=1).to(like.dtype)


def _gram(basis_y: Tensor, basis_x: Tensor, weight: Tensor) -> Tensor:
    """Weighted inner products "m 4 4" of the fitted functions, as products of profiles."""
    pairs_y = (basis_y[:, :, None] * basis_y[:, None]).flatten(1, 2)
    pairs_x = (basis_x[:, :, None] * basis_x[:, None]).flatten(1, 2)
    table = (pairs_y @ weight @ pairs_x.mT).double()
    in_y, in_x = _IN_Y.to(weight.device), _IN_X.to(weight.device)
    return table[:, 3 * in_y[:, None] + in_y, 3 * in_x[:, None] + in_x]


def _covariance(fit: _Fit, values: Tensor) -> Tensor:
    """Covariance "m 4 4" of the solution from each pixel's own residual: clipped noise counts as it is."""
    # The residual is taken with the shift of the last step, to first order.
    shift = fit.solution[:, 2:].to(values.dtype)
    scale = fit.solution[:, :2].to(values.dtype)
    blob_x, slope_x, one = fit.basis_x.unbind(1)
    blob_y, slope_y, _ = fit.basis_y.unbind(1)
    along_y = torch.stack([blob_y, slope_y, one[:, :1].expand_as(blob_y)], dim=1)
    along_x = torch.stack(
        [
            scale[:, :1] * blob_x + shift[:, :1] * slope_x,
            shift[:, 1:] * blob_x,
            scale[:, 1:].expand_as(blob_x),
        ],
        dim=1,
    )
    squares = torch.bmm(along_y.mT, along_x).sub_(values).square_().mul_(fit.weight)
    count = fit.weight.sum(dim=(-2, -1)).double()
    correction = count / (count - 4).clamp(min=1)
    inverse = torch.linalg.inv_ex(fit.normal).inverse
    return correction[:, None, None] * (inverse @ _gram(fit.basis_y, fit.basis_x, squares) @ inverse)
