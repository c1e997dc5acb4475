"""Frozen dataclasses of tensors that move to a device as a whole."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ai_wam.cameras import Cameras
from ai_wam.utils.brief_repr import BriefRepr

_Self = TypeVar(
    "_Self", bound="TensorDataclass"
)  # typing.Self is unknown to runtime checks of single methods


def is_blank(value: Any) -> bool:
    """Whether a tensor is one number expanded to a shape: a stand-in for pictures that are not decoded."""
    return isinstance(value, Tensor) and value.numel() > 1 and not any(value.stride())


def _apply(function: Callable[[Any], Any], value: Any) -> Any:
    """The function of a value; blank tensors stay one number."""
    if is_blank(value):
        return function(value.as_strided((1,) * value.ndim, value.stride())).expand(value.shape)
    return function(value)


class TensorDataclass(BriefRepr):
    """A frozen dataclass of tensors that moves to a device as a whole; Lightning looks for the method."""

    def to(self: _Self, device: torch.device | str, non_blocking: bool = False) -> _Self:
        """Every tensor and camera field on a device; other fields stay, and so does every dtype."""
        moved = {
            field.name: _apply(lambda each: each.to(device, non_blocking=non_blocking), value)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor | TensorDataclass | Cameras)
        }
        return replace(self, **moved)  # type: ignore[type-var]

    def pin_memory(self: _Self) -> _Self:
        """Every tensor and camera field in page-locked memory, for loaders that feed an accelerator."""
        pinned = {
            field.name: value.map(Tensor.pin_memory)
            if isinstance(value, Cameras)
            else _apply(lambda each: each.pin_memory(), value)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor | TensorDataclass | Cameras)
        }
        return replace(self, **pinned)  # type: ignore[type-var]
