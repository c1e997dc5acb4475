"""Pictures of every view to tokens: a timm network, the instruction, and keypoints with their camera rays."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ai_wam.cameras import Cameras
from ai_wam.canvas import RAY_CHANNELS
from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers

_GROUPS = 8  # of channels that are normalised together
_SHARPNESS = 10.0  # of keypoints at first: about equal weights everywhere would tell them nothing of places


class ViewEncoder(nn.Module):
    """A picture network, shared by all views, read at keypoints that the instruction chooses.

    Feature maps are scaled and shifted by the instruction; each of the keypoints is a softmax over their
    positions (spatial softmax, as in Diffusion Policy, arXiv 2303.04137). A token holds what the keypoint
    sees, where it is in the picture, and the mean of the camera rays there.

    Batch normalisations keep their pretrained statistics.

    Args:
        name: of a network in timm.
        pretrained: whether timm loads its released weights, or a file of them.
        options: further arguments of `timm.create_model`.
        level: which of the network's feature maps is read, from 0, the finest one, on.
        keypoints: per view.
        rays: whether tokens hold the rays of calibrated cameras.
        width: of a token.

    Raises:
        ValueError: a network or level that timm does not have; untrained batch normalisations; a width that
            is no multiple of 8.
    """

    def __init__(
        self,
        name: str = "resnet18",
        pretrained: bool | str = False,
        options: dict[str, Any] | None = None,
        level: int = 1,
        keypoints: int = 32,
        rays: bool = True,
        width: int = 128,
    ) -> None:
        super().__init__()
        check_numbers("ViewEncoder", at_least=1, keypoints=keypoints, width=width)
        check_numbers("ViewEncoder", at_least=0, level=level)
        if width % _GROUPS:
            raise InvalidValue(f"ViewEncoder: width {width} must be a multiple of {_GROUPS}")
        self.trunk = _trunk(name, pretrained, options or {})
        if level >= len(self.trunk.feature_info):
            raise InvalidValue(
                f"ViewEncoder: {name} has {len(self.trunk.feature_info)} levels, got level {level}"
            )
        channels = self.trunk.feature_info[level]["num_chs"]
        self.trunk.prune_intermediate_layers([level], prune_head=True)
        self.level, self.keypoints, self.rays, self.width = level, keypoints, rays, width
        self.stem = nn.Conv2d(channels, width, 1)
        self.map = nn.Sequential(
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
        )
        self.points = nn.Conv2d(width, keypoints, 1)
        self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS))
        self.token = nn.Linear(width + 2 + rays * RAY_CHANNELS, width)
        self.own = nn.Parameter(0.02 * torch.randn(keypoints, width))
        config = self.trunk.pretrained_cfg
        for part in ("mean", "std"):
            self.register_buffer(part, torch.tensor(config[part]).view(3, 1, 1), persistent=False)

    def fit_to(self, views: int, prompt: int) -> None:
        """Take so many views, and pooled prompts of this width; called once by the task."""
        self.view = nn.Parameter(0.02 * torch.randn(views, 1, self.width))
        self.modulate = nn.Linear(prompt, 2 * self.width)

    def train(self, mode: bool = True) -> "ViewEncoder":
        """Switch the mode; batch normalisations stay in evaluation mode."""
        super().train(mode)
        for part in self.trunk.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def forward(
        self,
        video: Float[Tensor, "b v 3 h w"],
        cameras: Cameras,
        origin: Float[Tensor, "b 3"],
        pooled: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b v k e"]:
        """The tokens of every view.

        Args:
            video: pictures in [-1, 1].
            cameras: of the same frame, leading dimensions "b v".
            origin: about which the rays' moments are taken, world frame, metres.
            pooled: a vector per prompt.
        """
        b, v, _, h, w = video.shape
        pictures = ((video + 1) / 2 - self.mean) / self.std  # type: ignore[operator]  # buffers
        features = self.trunk.forward_intermediates(
            pictures.flatten(0, 1), [self.level], output_fmt="NCHW", intermediates_only=True, stop_early=True
        )[0]
        scale, shift = self.modulate(pooled).repeat_interleave(v, dim=0)[..., None, None].chunk(2, dim=1)
        features = self.map(self.stem(features) * (1 + scale) + shift)
        gh, gw = features.shape[-2:]
        pull = (self.sharpness * self.points(features).flatten(2).float()).softmax(dim=-1)  # (b v) k p
        places = [_grid(gh, gw, features)]
        if self.rays:
            places.append(_rays(cameras, origin, (h, w), (gh, gw)).flatten(0, 1))
        seen = [features.flatten(2).mT.float(), *(place.expand(b * v, -1, -1) for place in places)]
        found = torch.einsum("nkp,npc->nkc", pull, torch.cat(seen, dim=-1))
        tokens = rearrange(self.token(found) + self.own, "(b v) k e -> b v k e", b=b)
        return tokens + self.view


def _trunk(name: str, pretrained: bool | str, options: Mapping[str, Any]) -> Any:
    known = {"pretrained_cfg_overlay": {"file": pretrained}} if isinstance(pretrained, str) else {}
    if name not in timm.list_models(name):
        raise InvalidValue(f"ViewEncoder: timm has no network {name!r}; `timm.list_models()` lists them")
    network = timm.create_model(name, pretrained=bool(pretrained), num_classes=0, **known, **options)
    for method in ("forward_intermediates", "prune_intermediate_layers"):
        if not hasattr(network, method):
            raise InvalidValue(f"ViewEncoder: {name} gives no feature maps ({method}); choose another one")
    normed = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if normed and not pretrained:
        raise InvalidValue(
            f"ViewEncoder: {name} has batch normalisations, which stay as they were pretrained, but nothing "
            "is pretrained; set pretrained, or another normalisation (options: {norm_layer: groupnorm})"
        )
    return network


def _grid(rows: int, columns: int, like: Tensor) -> Float[Tensor, "1 p 2"]:
    """Positions in the picture, x and y, from -1 to 1 at the edges."""
    x, y = ((torch.arange(n, device=like.device) + 0.5) * 2 / n - 1 for n in (columns, rows))
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).flatten(0, 1)[None]


def _rays(
    cameras: Cameras, origin: Float[Tensor, "b 3"], size: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b v p 6"]:
    """Directions, and moments about the origin in metres, world axes; zeros where a calibration is lost."""
    around = torch.eye(4, dtype=torch.float64, device=origin.device).repeat(len(origin), 1, 1, 1)
    around[..., :3, 3] = origin[:, None].double()
    return (
        cameras.to(torch.float64).relative_to(around).plucker(size, grid).flatten(2, 3).nan_to_num(0).float()
    )
