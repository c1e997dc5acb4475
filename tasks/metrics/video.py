"""Distance of generated from recorded video: per frame (PSNR, SSIM, LPIPS) and as a distribution (FVD)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tasks.metrics.averages import Averages

_ROUNDING = 10 * math.log10(12 * 255**2)  # dB; the error of rounding to 8 bits, which the truth itself has
_FRAMES_AT_ONCE = 16


class VideoQuality(Averages):
    """Per frame and view, the given frame 0 left out: each frame of each view has the same weight.

    Metrics:
        psnr: dB, over the three colours. A frame without error counts as 58.9 dB, as rounding to 8 bits does.
        ssim: structural similarity in [-1, 1] (Gaussian window of 11 pixels), mean over the colours.
        lpips_NAME: perceptual distance, for each network given (see `tasks.metrics.networks`).

    Args:
        perceptual: networks by the metric's name; they give distances "n" of pictures "n 3 h w" in [-1, 1].
    """

    def __init__(self, perceptual: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(("psnr", "ssim", *(perceptual or {})))
        self.perceptual = nn.ModuleDict(perceptual)

    def update(
        self,
        video: Float[Tensor, "b v 3 t h w"],
        truth: Float[Tensor, "b v 3 t h w"],
        counted: Bool[Tensor, "b v t"],
    ) -> None:
        """Add clips.

        Args:
            video: generated, in [-1, 1].
            truth: recorded.
            counted: False for frames that are left out.
        """
        chosen = counted[:, :, 1:]
        if not chosen.any():
            return
        pairs = [each.movedim(2, 3)[:, :, 1:][chosen].clamp(-1, 1) for each in (video, truth)]
        with full_float32(video.device):
            for guess, true in zip(*(each.split(_FRAMES_AT_ONCE) for each in pairs), strict=True):
                self._frames(guess.float(), true.float())

    def _frames(self, guess: Float[Tensor, "n 3 h w"], true: Float[Tensor, "n 3 h w"]) -> None:
        everyone = torch.ones(len(true), dtype=torch.bool, device=true.device)
        ours, theirs = ((each + 1) / 2 for each in (guess, true))
        psnr = peak_signal_noise_ratio(ours, theirs, data_range=1.0, reduction="none", dim=(1, 2, 3))
        ssim = structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
        self.add("psnr", psnr.clamp(max=_ROUNDING), everyone)
        self.add("ssim", torch.as_tensor(ssim).reshape(-1), everyone)
        for name, network in self.perceptual.items():
            self.add(name, network(guess, true).flatten(), everyone)


class FrechetVideoDistance(Metric):
    """Frechet distance of two Gaussians fitted to features of generated and of recorded clips.

    Each view of a clip is one sample, its given frame included. The figure falls as samples are added and
    means little for fewer samples than features: compare equal numbers of clips only.

    Args:
        name: of the figure, which ends in the extractor's.
        extractor: features "n d" of clips "n 3 t h w" in [-1, 1].
        features: their number d.
    """

    full_state_update = False
    counts: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, name: str, extractor: nn.Module, features: int) -> None:
        super().__init__()
        self.name, self.extractor = name, extractor
        self.add_state("counts", torch.zeros(2, dtype=torch.long), "sum")  # generated, recorded
        self.add_state("sums", torch.zeros(2, features, dtype=torch.float64), "sum")
        self.add_state("products", torch.zeros(2, features, features, dtype=torch.float64), "sum")

    def update(
        self,
        video: Float[Tensor, "b v 3 t h w"],
        truth: Float[Tensor, "b v 3 t h w"],
        counted: Bool[Tensor, "b v t"],
    ) -> None:
        """Add clips; those count of which all frames do."""
        chosen = counted.all(2)
        if not chosen.any():
            return
        for index, clips in enumerate((video, truth)):
            with full_float32(video.device):
                found = self.extractor(clips[chosen].float().clamp(-1, 1)).double()
            self.counts[index] += len(found)
            self.sums[index] += found.sum(0)
            self.products[index] += found.T @ found

    def compute(self) -> dict[str, Tensor]:
        """The distance; NaN below two clips."""
        count = int(self.counts[0])
        if count < 2:
            return {self.name: self.sums.new_tensor(math.nan)}
        means = self.sums / count
        outer = means[:, :, None] * means[:, None]
        covariances = (self.products - count * outer) / (count - 1)
        return {self.name: frechet_distance(means[0], covariances[0], means[1], covariances[1])}


def frechet_distance(
    mean: Float[Tensor, "d"],
    covariance: Float[Tensor, "d d"],
    other_mean: Float[Tensor, "d"],
    other_covariance: Float[Tensor, "d d"],
) -> Float[Tensor, ""]:
    """Squared Frechet distance `|m - n|^2 + tr(A + B - 2 (A B)^(1/2))` of two Gaussians, in float64.

    The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), whose eigenvalues are real.
    """
    a, b = covariance.double(), other_covariance.double()
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    apart = (mean.double() - other_mean.double()).square().sum()
    return (apart + a.trace() + b.trace() - 2 * cross).clamp(min=0)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Context without autocast and TF32, so that metrics do not depend on the precision of the model."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(True, allow_tf32=False):
        yield


def square_clips(video: Float[Tensor, "n 3 t h w"], side: int) -> Float[Tensor, "n 3 t s s"]:
    """The centre square of every frame, resized bilinearly as the common FVD scripts do."""
    h, w = video.shape[-2:]
    edge = min(h, w)
    top, left = (h - edge) // 2, (w - edge) // 2
    frames = video[..., top : top + edge, left : left + edge].transpose(1, 2)
    small = functional.interpolate(frames.flatten(0, 1), (side, side), mode="bilinear", align_corners=False)
    return small.unflatten(0, frames.shape[:2]).transpose(1, 2)
