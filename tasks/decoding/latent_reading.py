"""Action images from latents without the video decoder: a linear map, fitted to the codec on drawn images.

A blob is smooth, so that the latent cells around a place determine it, even what the codec dropped of the
cell itself. Blobs need few pixels: the images are drawn as small as they may be (a blob three pixels wide).
The poses are fitted to them as to any action image.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ai_wam.action_images import ActionImageTokenizer, DecodedActions, Spread
from ai_wam.cameras import Cameras
from ai_wam.poses import geodesic_angle, rotation_from_quaternion
from ai_wam.types import LatentSpec
from ai_wam.utils.autocast import full_precision
from tasks.decoding.drawn_clips import drawn_clips

_BLOB_PIXELS = 3.2  # width of a blob in the small images
_CELLS_PER_UNKNOWN = 50  # equations of the least squares
_FEWEST_CLIPS, _HELD_OUT, _TOGETHER, _VIEWS = 40, 32, 8, 2  # clips, clips, clips in memory, views of a clip
_RIDGE = 1e-4  # of the mean diagonal
_NOISE = (0.03, 0.1, 0.3)  # standard deviations of the latents, at which the spread is measured

_CUT = "n c (l r) (h p) (w q) -> n l (h w) (r c p q)"  # small images, into cells
_DRAW = "(b v) l (r c p q) h w -> b v c (l r) (h p) (w q)"  # cells, to small images

Coding: TypeAlias = Callable[[Tensor], Tensor]
"""A video codec's `encode` or `decode`, with leading dimensions "b v"."""


class Codec(NamedTuple):
    """A backbone's codec, as the reader is fitted to it.

    Attributes:
        encode: of videos "b v 3 t h w" in [-1, 1].
        decode: its inverse.
        spec: of the latents.
        device: where both take their tensors.
    """

    encode: Coding
    decode: Coding
    spec: LatentSpec
    device: torch.device


class _Linear(NamedTuple):
    """A convolution over the 3 x 3 cells around a cell; the last input channel is 1 within the picture."""

    weight: Float[Tensor, "m c 3 3"]
    bias: Float[Tensor, "m"]


@dataclass(frozen=True)
class LatentReader:
    """Reads actions off the latents of action images of one codec, tokenizer and size.

    Attributes:
        first: draws the first latent frame's image.
        later: draws the images of every later latent frame.
        stride: how many those are.
        cell: pixels of a small image per latent cell.
        tokenizer: how the actions are drawn.
        size: image height and width for which cameras are given, in pixels.
        spread: how much wider errors scatter than the fit of a blob says.
        position_ratio: 95th percentile of position errors over that of decoded images, on drawn clips that
            were not fitted.
        rotation_ratio: the same of rotations.
    """

    first: _Linear
    later: _Linear
    stride: int
    cell: int
    tokenizer: ActionImageTokenizer
    size: tuple[int, int]
    spread: Spread = Spread()  # noqa: RUF009 - a tuple
    position_ratio: float = math.inf
    rotation_ratio: float = math.inf

    def images(self, latents: Float[Tensor, "b v c l h w"]) -> Float[Tensor, "b v 3 t _ _"]:
        """Small action images, roughly in [0, 1]."""
        b, frames = latents.shape[0], latents.shape[3]
        with full_precision(latents.device):
            cells = _with_inside(latents.float())
            parts = [_apply(self.first, cells[:, :1]), _apply(self.later, cells[:, 1:])]
        p = self.cell
        drawn = [
            rearrange(part, _DRAW, b=b, c=3, p=p, q=p, r=count)
            for part, count in zip(parts, (1, self.stride), strict=True)
        ]
        return torch.cat(drawn if frames > 1 else drawn[:1], dim=3)

    def read(
        self,
        images: Float[Tensor, "b v 3 t ph pw"],
        cameras: Cameras,
        view_mask: Bool[Tensor, "b v"] | None = None,
    ) -> DecodedActions:
        """The actions that small images show.

        Args:
            images: as `images` draws them.
            cameras: leading dimensions "b v t".
            view_mask: False for views to be ignored.
        """
        return self.tokenizer.decode(images, cameras, view_mask, self.size, self.spread)


def fit_reader(
    codec: Codec, tokenizer: ActionImageTokenizer, size: tuple[int, int], seed: int = 0
) -> LatentReader:
    """Least squares on drawn action images, then what is known of its precision on others.

    Args:
        codec: of the backbone.
        tokenizer: how actions are drawn.
        size: image height and width in pixels.
        seed: of the drawn clips.
    """
    spec = codec.spec
    cell = pixels_of_cell(spec, tokenizer, size)
    clips = _Clips(codec, tokenizer, size)
    first, later = _least_squares(clips, cell, seed)
    reader = LatentReader(first, later, spec.temporal_stride, cell, tokenizer, size)
    held = list(clips.drawn(_HELD_OUT, seed + 1))
    reader = replace(reader, spread=_spread(reader, held, seed))
    return _compared(reader, codec, held)


def pixels_of_cell(spec: LatentSpec, tokenizer: ActionImageTokenizer, size: tuple[int, int]) -> int:
    """Pixels of a small image per latent cell, both ways: a divisor of the cell's pixels in a full image.

    Args:
        spec: of the latents.
        tokenizer: how actions are drawn.
        size: image height and width in pixels.
    """
    least = spec.spatial_stride * _BLOB_PIXELS / (tokenizer.blob_std * min(size))
    divisors = [n for n in range(1, spec.spatial_stride + 1) if spec.spatial_stride % n == 0]
    return next((n for n in divisors if n >= least), spec.spatial_stride)


def _one_by_one(coding: Coding, clips: Tensor) -> Tensor:
    """A codec's result for each clip: those of released sizes take gigabytes for one."""
    return torch.cat([coding(clip) for clip in clips.split(1)])


class _Drawn(NamedTuple):
    """Clips: their actions, cameras, images in [0, 1] and latents."""

    actions: Float[Tensor, "n t 8"]
    cameras: Cameras
    images: Float[Tensor, "n v 3 t h w"]
    latents: Float[Tensor, "n v c l h w"]


@dataclass(frozen=True)
class _Clips:
    """Draws and encodes clips of one size."""

    codec: Codec
    tokenizer: ActionImageTokenizer
    size: tuple[int, int]

    def drawn(self, count: int, seed: int) -> Iterator[_Drawn]:
        """So many clips, a few at a time."""
        spec, generator = self.codec.spec, torch.Generator().manual_seed(seed)
        frames = 1 + spec.frame_multiple * math.ceil(2 * spec.temporal_stride / spec.frame_multiple)
        for _ in range(0, count, _TOGETHER):
            actions, cameras = drawn_clips(_TOGETHER, _VIEWS, frames, self.size, generator)
            actions, cameras = actions.to(self.codec.device), cameras.to(self.codec.device)
            images = self.tokenizer.encode(actions, cameras, self.size)
            yield _Drawn(actions, cameras, images, _one_by_one(self.codec.encode, images * 2 - 1).float())


def _least_squares(clips: _Clips, cell: int, seed: int) -> tuple[_Linear, _Linear]:
    """The maps of first and of later latent frames to pixels."""
    spec = clips.codec.spec
    unknowns = 9 * (spec.channels + 1) + 1
    cells = _VIEWS * math.prod(spec.grid(clips.size))
    count = max(_FEWEST_CLIPS, math.ceil(_CELLS_PER_UNKNOWN * unknowns / cells))
    first, later = _Equations(), _Equations()
    for clip in tqdm(clips.drawn(count, seed), "fitting to the codec", -(-count // _TOGETHER), leave=False):
        near, images = _neighbourhoods(clip.latents), _targets(clip.images, spec, cell)
        first.add(near[:, :1], images[0])
        later.add(near[:, 1:], images[1])
    return first.solved(), later.solved()


class _Equations:
    """Normal equations of a linear map."""

    def __init__(self) -> None:
        self._normal, self._right = torch.zeros(()), torch.zeros(())

    def add(self, x: Float[Tensor, "n l k f"], y: Float[Tensor, "n l k m"]) -> None:
        """More equations x @ map = y."""
        x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        self._normal, self._right = self._normal.to(x) + x.T @ x, self._right.to(x) + x.T @ y

    def solved(self) -> _Linear:
        """Their solution."""
        ridge = _RIDGE * self._normal.diagonal().mean() * torch.eye(len(self._normal)).to(self._normal)
        found = torch.linalg.solve(self._normal + ridge, self._right).float()
        return _Linear(rearrange(found[:-1], "(c k l) m -> m c k l", k=3, l=3).contiguous(), found[-1])


def _with_inside(latents: Float[Tensor, "b v c l h w"]) -> Float[Tensor, "n l d h w"]:
    """Latent frames of every view, and a channel of ones: padding makes it 0 outside of the picture."""
    frames = rearrange(latents, "b v c l h w -> (b v) l c h w")
    return torch.cat([frames, torch.ones_like(frames[:, :, :1])], dim=2)


def _neighbourhoods(latents: Float[Tensor, "b v c l h w"]) -> Float[Tensor, "n l k f"]:
    """Features of every cell: those of the 3 x 3 cells around it, and 1."""
    cells = _with_inside(latents)
    near = functional.unfold(cells.flatten(0, 1), 3, padding=1).mT
    near = torch.cat([near, torch.ones_like(near[..., :1])], dim=-1)
    return near.unflatten(0, cells.shape[:2])


def _targets(
    images: Float[Tensor, "b v 3 t h w"], spec: LatentSpec, cell: int
) -> tuple[Float[Tensor, "n 1 k m"], Float[Tensor, "n l k o"]]:
    """Small images, cell by cell, of the first and of later latent frames."""
    thin = functional.avg_pool2d(images.flatten(0, 3), spec.spatial_stride // cell)
    small = rearrange(thin, "(n c t) h w -> n c t h w", c=3, t=images.shape[3])
    parts = (small[:, :, :1], 1), (small[:, :, 1:], spec.temporal_stride)
    first, later = (rearrange(part, _CUT, p=cell, q=cell, r=count) for part, count in parts)
    return first, later


def _apply(linear: _Linear, cells: Float[Tensor, "n l d h w"]) -> Float[Tensor, "n l m h w"]:
    weight, bias = (each.to(cells.device) for each in linear)
    return functional.conv2d(cells.flatten(0, 1), weight, bias, padding=1).unflatten(0, cells.shape[:2])


def _spread(reader: LatentReader, held: list[_Drawn], seed: int) -> Spread:
    """That by which squared errors are as large as predicted, on the mean of several levels of noise."""
    generator, scores = torch.Generator().manual_seed(seed), []
    for clip in held:
        for level in _NOISE:
            noise = torch.randn(clip.latents.shape, generator=generator).to(clip.latents)
            scores.append(_score(reader, clip, clip.latents + level * clip.latents.std() * noise))
    mean = torch.stack(scores).nanmean(dim=0).nan_to_num(nan=1.0)
    position, rotation = mean.sqrt().tolist()
    return Spread(position, rotation)


def _score(reader: LatentReader, clip: _Drawn, latents: Float[Tensor, "n v c l h w"]) -> Float[Tensor, "2"]:
    """Mean squared error of positions and rotations over the predicted variance; NaN if all are invalid."""
    read = reader.read(reader.images(latents), clip.cameras)
    predicted = torch.stack([read.position_std, read.rotation_std], dim=-1).flatten(0, 1).double()
    square = (_errors(read, clip.actions) / predicted).square() / 3
    return square[read.valid.flatten()].mean(dim=0)


def _compared(reader: LatentReader, codec: Codec, held: list[_Drawn]) -> LatentReader:
    """With the errors of its poses over those of decoded images."""
    tokenizer = reader.tokenizer
    found: list[tuple[Tensor, Tensor]] = []
    for clip in held:
        images = _one_by_one(codec.decode, clip.latents)
        pixels = tokenizer.decode((images + 1) / 2, clip.cameras)
        read = reader.read(reader.images(clip.latents), clip.cameras)
        found.append((_errors(read, clip.actions), _errors(pixels, clip.actions)))
    own, other = (torch.cat(errors) for errors in zip(*found, strict=True))
    kept = other.isfinite().all(-1)  # of all steps that decoded images show, invalid ones as infinite errors
    ratios = own[kept].quantile(0.95, dim=0) / other[kept].quantile(0.95, dim=0)
    position, rotation = ratios.nan_to_num(nan=math.inf).tolist()
    return replace(reader, position_ratio=position, rotation_ratio=rotation)


def _errors(read: DecodedActions, actions: Float[Tensor, "n t 8"]) -> Float[Tensor, "m 2"]:
    """Metres and radians of every step; infinite where invalid."""
    away = (read.actions[..., :3] - actions[..., :3]).double().norm(dim=-1)
    rotations = [rotation_from_quaternion(each[..., 3:7].double()) for each in (read.actions, actions)]
    error = torch.stack([away, geodesic_angle(rotations[0], rotations[1])], dim=-1)
    return error.masked_fill(~read.valid[..., None], torch.inf).flatten(0, 1)
