"""A fixed linear codec for small models: cosine transforms of patches."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ai_wam.errors import InvalidValue
from backbones.codecs.base import LatentCodec


class PatchCodec(LatentCodec):
    """Cosine transforms of patches, cut to the lowest frequencies: nothing to learn, save or download.

    The first frame is cut into 8 x 8 patches, later frames into 8 x 8 x 4 blocks, as causal video
    autoencoders do; the transforms are orthonormal. A third of the channels belongs to each colour. `gain`
    brings the lowest frequencies of real pictures near unit variance; being one constant, it keeps squared
    errors of latents proportional to squared errors of pixels.

    Args:
        channels: latent channels, a multiple of 3.
        patch: pixels of a patch, both ways.
        frames: frames of a block after the first frame.
        gain: factor on orthonormal coefficients.
        temporal_weight: how much sooner a temporal frequency is dropped than a spatial one. At 1/2 blobs that
            move fast stay where they are; at 1 videos of real pictures are 1 dB better, and a twelfth of
            the poses of fast motions can no longer be read.
    """

    causal = "exact"
    basis_first: Tensor
    basis_later: Tensor

    def __init__(
        self,
        channels: int = 48,
        patch: int = 8,
        frames: int = 4,
        gain: float = 0.25,
        temporal_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if channels % 3 or channels // 3 > patch * patch:
            raise InvalidValue(
                f"PatchCodec: channels must be a multiple of 3, at most {3 * patch * patch}, got {channels}"
            )
        self.channels, self.spatial_stride = channels, patch
        self.temporal_stride = self.frame_multiple = frames
        self.gain = gain
        first = _cosine_basis((1, patch, patch), channels // 3, temporal_weight)
        later = _cosine_basis((frames, patch, patch), channels // 3, temporal_weight)
        self.register_buffer("basis_first", first, persistent=False)
        self.register_buffer("basis_later", later, persistent=False)
        # The latents of a still scene should not jump after the first frame: bring both kinds to one scale.
        self.first_gain = frames**0.5

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n c tl lh lw"]:
        """Project patches on the lowest frequencies."""
        if (video.shape[2] - 1) % self.temporal_stride:
            raise InvalidValue(f"PatchCodec: {video.shape[2]} frames are not {self.temporal_stride}k + 1")
        p = self.spatial_stride
        first = rearrange(video[:, :, :1], "n c 1 (h p) (w q) -> n 1 h w c (p q)", p=p, q=p)
        latents = [first @ self.basis_first.T * (self.gain * self.first_gain)]
        if video.shape[2] > 1:
            later = rearrange(
                video[:, :, 1:],
                "n c (t r) (h p) (w q) -> n t h w c (r p q)",
                r=self.temporal_stride,
                p=p,
                q=p,
            )
            latents.append(later @ self.basis_later.T * self.gain)
        return rearrange(torch.cat(latents, dim=1), "n t h w c k -> n (c k) t h w").contiguous()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c tl lh lw"]) -> Float[Tensor, "n 3 t h w"]:
        """The transpose of `encode`, which inverts it on what was kept."""
        n, _, times, height, width = latents.shape
        r, p = self.temporal_stride, self.spatial_stride
        parts = rearrange(latents / self.gain, "n (c k) t h w -> n t h w c k", c=3)
        video = latents.new_empty(n, 3, 1 + (times - 1) * r, height * p, width * p)
        # Patches are written where they belong at once, since a clip is much larger than its latents.
        patches = parts[:, :1] @ (self.basis_first / self.first_gain)
        patches = rearrange(patches, "n 1 h w c (p q) -> n c 1 h p w q", p=p, q=p)
        video[:, :, :1].view(patches.shape).copy_(patches)
        if times > 1:
            patches = parts[:, 1:] @ self.basis_later
            patches = rearrange(patches, "n t h w c (r p q) -> n c t r h p w q", r=r, p=p, q=p)
            video[:, :, 1:].view(patches.shape).copy_(patches)
        return video.clamp_(-1, 1)


def _cosine_basis(shape: tuple[int, int, int], keep: int, temporal_weight: float) -> Float[Tensor, "k n"]:
    """The `keep` lowest rows of the orthonormal 3D DCT-II of a block (frames, rows, columns)."""
    axes = []
    for n in shape:
        k, x = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
        rows = torch.cos(torch.pi * (x + 0.5) * k / n) * (2 / n) ** 0.5
        rows[0] /= 2**0.5
        axes.append(rows)
    basis = torch.einsum("ax,by,cz->abcxyz", *axes).reshape(-1, shape[0] * shape[1] * shape[2])
    # Frequencies in cycles per patch; the index decides among equals, so that codecs agree everywhere.
    order = [
        ((temporal_weight * t) ** 2 + y**2 + x**2, t, y, x)
        for t in range(shape[0])
        for y in range(shape[1])
        for x in range(shape[2])
    ]
    rank = sorted(range(len(order)), key=order.__getitem__)
    return basis[rank[:keep]].float()
