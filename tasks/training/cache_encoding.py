"""Latents of frozen encoders, and the identity of the encoders: for caches of latents."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import Encoded
from ai_wam.utils.class_paths import class_path
from backbones.base import VideoBackbone

_DRAWING = ("blob_std", "axis_length", "pixel_center", "binary_openness")  # what decides an action image
_NOTES = ("_name_or_path", "_diffusers_version")  # of a configuration, that decide nothing


def encode_pictures(
    backbone: VideoBackbone,
    now: Float[Tensor, "b v 3 1 h w"],
    frames: int,
    video: Float[Tensor, "b v 3 t h w"] | None = None,
) -> Encoded:
    """All encodings of observed pictures that a backbone uses.

    Args:
        backbone: whose encoders they are.
        now: the first frame, in [-1, 1]; zeros for missing views.
        frames: video frames of the clip.
        video: the clip, where all of it is looked at.
    """
    first = backbone.encode(now)
    return Encoded(
        first=first,
        video=None if video is None else backbone.encode(video),
        still=backbone.encode_still(now, first, frames),
        images=backbone.encode_images(now),
    )


def encoder_identity(backbone: VideoBackbone, tokenizer: ActionImageTokenizer) -> dict[str, Any]:
    """The identity of frozen encoders as JSON values: classes, settings and a hash of their weights."""
    return {
        "backbone": class_path(backbone),
        "options": {name: value for name, value in vars(backbone).items() if name == "camera_encoders"},
        "takes_image": backbone.takes_image(backbone.denoiser.config),
        "codec": _identity(backbone.codec),
        "images": None if backbone.images is None else _identity(backbone.images),
        "drawing": {name: getattr(tokenizer, name) for name in _DRAWING},
    }


def _identity(module: nn.Module) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = {name: _plain(value) for name, value in vars(module).items() if _is_setting(name, value)}
    found: list[Any] = [getattr(part, "config", None) for part in module.modules()]
    configs = [
        {name: _plain(value) for name, value in config.items() if name not in _NOTES}
        for config in found
        if isinstance(config, Mapping)
    ]
    kind = class_path(module)
    return {"class": kind, "weights": digest.hexdigest(), "settings": settings, "configs": configs}


def _is_setting(name: str, value: Any) -> bool:
    plain = (bool, int, float, str, list, tuple)
    return not name.startswith("_") and name != "training" and isinstance(value, plain)


def _plain(value: Any) -> Any:
    """A value as JSON represents it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
