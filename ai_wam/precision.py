"""Parts that compute in their own precision whatever the trainer's."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Switches autocast off; there is none for tensors without storage, on which sizes are computed."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
