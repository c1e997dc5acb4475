"""A learned decoder of actions: what is generated, the cameras and the geometric decode in; poses out."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ai_wam.action_images import DecodedActions
from ai_wam.cameras import Cameras
from ai_wam.canvas import RAY_CHANNELS, Canvas, Kind
from ai_wam.poses import (
    continuous_quaternions,
    quaternion_from_rotation,
    rotation_from_quaternion,
    rotation_from_vector,
)
from ai_wam.utils.autocast import full_precision

_POINTS = 16  # places that a feature map points at
_METRES, _RADIANS = 0.05, 0.3  # what a correction of 1 means


class ActionHead(nn.Module):
    """Corrects the geometric decode; at step 0 it returns it, and the present pose where there is none.

    Each view's generated action latents, with the rays of their cells, become one token per latent frame, the
    geometric decode one per video frame; a small transformer lets them look at one another. The option of the
    paper (arXiv 2604.06168, table 3).

    Args:
        width: of the tokens.
        layers: of the transformer.
        heads: of its attention.
    """

    def __init__(self, width: int = 128, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.map = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.points = nn.Conv2d(width, _POINTS, 1)
        self.token = nn.Linear(width + 2 * _POINTS, width)
        self.camera = nn.Linear(12 + 3 + 1, width)
        self.pose = nn.Linear(3 + 9 + 3, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.correction = nn.Linear(width, 3 + 3 + 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def fit_to(self, channels: int) -> None:
        """Take latents of so many channels; called once by the task."""
        self.stem = nn.Conv2d(channels + RAY_CHANNELS, self.width, 3, padding=1)

    def forward(
        self,
        canvas: Canvas,
        latents: Float[Tensor, "b c f h w"],
        read: DecodedActions,
        cameras: Cameras,
        now: Float[Tensor, "b 8"],
    ) -> Float[Tensor, "b t 8"]:
        """Actions of all frames that were decoded.

        Args:
            canvas: what was generated.
            latents: the generated canvas, or the network's estimate of the clean one.
            read: the geometric decode of its action images.
            cameras: of the same frames, leading dimensions "b v t".
            now: the present pose and openness.
        """
        base, known = _base(read, now)
        frames = base.shape[1]
        when = torch.linspace(0, 1, frames, device=base.device).expand(len(base), -1)[..., None]
        rotation = rotation_from_quaternion(base[..., 3:7])
        place = (base[..., :3] - now[:, None, :3]) / _METRES
        said = torch.cat([place, rotation.flatten(2), base[..., 7:], known[..., None].float(), when], dim=-1)
        seen = self._seen(canvas, latents, cameras, now)
        tokens = self.transformer(torch.cat([self.pose(said), seen], dim=1))[:, :frames]
        move, turn, grip = self.correction(tokens).float().split([3, 3, 1], dim=-1)
        with full_precision(rotation.device):
            turned = rotation @ rotation_from_vector(_RADIANS * turn)
        openness = (torch.logit(base[..., 7:], eps=0.02) + grip).sigmoid()
        pose = continuous_quaternions(quaternion_from_rotation(turned))
        return torch.cat([base[..., :3] + _METRES * move, pose, openness], dim=-1)

    def loss(self, actions: Float[Tensor, "b t 8"], truth: Float[Tensor, "b t 8"]) -> Float[Tensor, "b"]:
        """Robust error of position and rotation, in units of a correction, and cross-entropy of openness."""
        away = (actions[..., :3] - truth[..., :3]).norm(dim=-1) / _METRES
        turned, right = (rotation_from_quaternion(each[..., 3:7]) for each in (actions, truth))
        angle = (turned - right).flatten(-2).norm(dim=-1) / 2**0.5  # its chord, which has a slope everywhere
        grip = functional.binary_cross_entropy(actions[..., 7], truth[..., 7].clamp(0, 1), reduction="none")
        robust = [
            functional.huber_loss(x, torch.zeros_like(x), reduction="none") for x in (away, angle / _RADIANS)
        ]
        return (robust[0] + robust[1] + 0.1 * grip).mean(dim=1)

    def _seen(
        self, canvas: Canvas, latents: Float[Tensor, "b c f h w"], cameras: Cameras, now: Float[Tensor, "b 8"]
    ) -> Float[Tensor, "b n d"]:
        """A token per view and latent frame."""
        parts = zip(
            canvas.segments, canvas.unpack(torch.cat([latents, canvas.condition], dim=1)), strict=True
        )
        own = latents.shape[1] + RAY_CHANNELS
        actions = torch.stack([part[:, :own] for each, part in parts if each.kind is Kind.ACTION], dim=1)
        b, v, _, length = actions.shape[:4]
        features = self.map(self.stem(rearrange(actions, "b v c l h w -> (b v l) c h w")))
        grid = [torch.linspace(-1, 1, size, device=features.device) for size in features.shape[-2:]]
        pull = self.points(features).flatten(2).softmax(dim=-1).unflatten(2, features.shape[-2:])
        found = torch.cat([(pull.sum(3) * grid[0]).sum(-1), (pull.sum(2) * grid[1]).sum(-1)], dim=-1)
        tokens = self.token(torch.cat([features.mean((2, 3)), found], dim=-1)).unflatten(0, (b, v, length))
        when = torch.linspace(0, 1, length, device=tokens.device).expand(b, v, -1)[..., None]
        return (tokens + self.camera(torch.cat([_camera(cameras, now, length), when], dim=-1))).flatten(1, 2)


def _camera(cameras: Cameras, now: Float[Tensor, "b 8"], length: int) -> Float[Tensor, "b v l 15"]:
    """Where the first frame's camera is, seen from the present pose, and its field of view; zeros if lost."""
    pose, k = cameras.world_from_camera[:, :, 0].float(), cameras.intrinsics[:, :, 0].float()
    place = pose[..., :3, 3] - now[:, None, :3]
    view = torch.stack([k[..., 0, 0] / k[..., 0, 2], k[..., 1, 1] / k[..., 1, 2], k[..., 0, 1]], dim=-1)
    known = torch.cat([pose[..., :3, :3].flatten(-2), place, view], dim=-1).nan_to_num()
    return known[:, :, None].expand(-1, -1, length, -1)


def _base(
    read: DecodedActions, now: Float[Tensor, "b 8"]
) -> tuple[Float[Tensor, "b t 8"], Bool[Tensor, "b t"]]:
    """The geometric decode, the present pose where there is none, and where it was measured."""
    actions = torch.where(read.actions.isfinite(), read.actions, now[:, None])
    return actions, read.valid
