"""Contexts that switch autocast off (full precision) or on (half precision)."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Switches autocast off; there is none for tensors without storage, on which sizes are computed."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def half_precision(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """Autocast to a half-precision `dtype` of weights, unless the trainer has an autocast of its own."""
    if dtype == torch.float32 or device.type == "meta" or torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype)
