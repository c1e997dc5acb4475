"""Drawing Gaussian blobs into images.

Pixel i of a row or column has its centre at coordinate i + `pixel_center`. Blobs have a known width (`std`,
pixels) and are separable, so one exponential per row and column replaces one per pixel.
"""

import math
import mmap

import torch
from jaxtyping import Float
from torch import Tensor

PEDESTAL = 0.25
"""Level up to which the blue channel shows the openness instead of the blob, and that of an open gripper."""

_SMALLEST = (
    1e-15  # the product of two kept values stays a normal float; denormals are an order of magnitude slower
)


_HUGE = 1 << 22  # bytes from which on huge pages pay


def empty_images(shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    """Uninitialised float32 images.

    On the CPU large ones lie in huge pages where the system has them: drawing a clip takes less time than
    faulting its memory in by 4 kB pages.
    """
    size = 4 * math.prod(shape)
    if device.type != "cpu" or size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without them
        return torch.empty(shape, device=device)
    return torch.frombuffer(pages, dtype=torch.float32).reshape(shape)


def draw_blobs(
    pixels: Float[Tensor, "*n 2"], std: float, pixel_center: float, out: Float[Tensor, "*n h w"]
) -> None:
    """Write exp(-r^2 / 2 std^2) around each point, peak 1, into `out`.

    Args:
        pixels: x (right) and y (down) of the centres; NaN draws nothing.
        std: width in pixels.
        pixel_center: coordinate of the centre of pixel 0.
        out: float32; every pixel is overwritten.
    """
    h, w = out.shape[-2:]
    row = _profile(pixels[..., 0], w, std, pixel_center)
    column = _profile(pixels[..., 1], h, std, pixel_center)
    torch.mul(column[..., :, None], row[..., None, :], out=out)


def draw_blobs_on_pedestal(
    pixels: Float[Tensor, "*n 2"],
    level: Float[Tensor, "*n"],
    std: float,
    pixel_center: float,
    out: Float[Tensor, "*n h w"],
) -> None:
    """As `draw_blobs`, but wherever the blob is at most PEDESTAL the pixel becomes `level`.

    Only a window around the disc that stands out of the pedestal is computed.
    """
    h, w = out.shape[-2:]
    out.copy_(level[..., None, None].expand(out.shape))
    radius = std * math.sqrt(-2 * math.log(PEDESTAL))
    y, column = _window_profile(pixels[..., 1], h, radius, std, pixel_center)
    x, row = _window_profile(pixels[..., 0], w, radius, std, pixel_center)
    blob = column[..., :, None] * row[..., None, :]
    window = torch.where(blob > PEDESTAL, blob, level[..., None, None])
    image, (step_y, step_x) = _image_starts(out), out.stride()[-2:]
    index = image[..., None, None] + step_y * y[..., :, None] + step_x * x[..., None, :]
    reach = 1 + sum((n - 1) * step for n, step in zip(out.shape, out.stride(), strict=True))
    out.as_strided((reach,), (1,)).index_put_((index,), window)  # one index is faster than one per dimension


def _image_starts(out: Tensor) -> Tensor:
    """Where in memory each image begins, counted from the first, "...n"."""
    starts = torch.zeros(out.shape[:-2], dtype=torch.long, device=out.device)
    for axis, step in enumerate(out.stride()[:-2]):
        shape = [-1 if i == axis else 1 for i in range(starts.dim())]
        starts = starts + step * torch.arange(out.shape[axis], device=out.device).reshape(shape)
    return starts


def _profile(center: Tensor, length: int, std: float, pixel_center: float) -> Tensor:
    """One-dimensional Gaussians over a row or column, float32."""
    coordinates = torch.arange(length, dtype=center.dtype, device=center.device) + pixel_center
    return gaussian(coordinates - center[..., None], std)


def _window_profile(
    center: Tensor, length: int, radius: float, std: float, pixel_center: float
) -> tuple[Tensor, Tensor]:
    """Indices of the pixels around each centre, shifted to lie inside the image, and their Gaussians."""
    size = min(2 * math.ceil(radius) + 2, length)
    first = torch.nan_to_num(center - pixel_center - radius).floor().clamp(0, length - size).long()
    index = first[..., None] + torch.arange(size, device=center.device)
    return index, gaussian(index + pixel_center - center[..., None], std)


def gaussian(offset: Float[Tensor, "*n"], std: float) -> Float[Tensor, "*n"]:
    """exp(-offset^2 / 2 std^2) in float32, with far tails cut to zero."""
    value = torch.exp(-0.5 * (offset / std) ** 2)
    return torch.where(value > _SMALLEST, value, 0).float()
