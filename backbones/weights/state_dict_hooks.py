"""State hooks: checkpoints leave out frozen weights that the released model has."""

from typing import Any

from torch import Tensor


def leave_out_released(module: Any, state: dict[str, Tensor], prefix: str, _: dict[str, Any]) -> None:
    """State-dict hook: remove the tensors named by `VideoBackbone.unsaved`."""
    for name in module.unsaved():
        state.pop(prefix + name, None)


def allow_missing_released(module: Any, incompatible: Any) -> None:
    """Load hook: tensors that checkpoints leave out are not reported as missing."""
    own = module.unsaved()
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if not any(key.endswith(name) for name in own)
    ]
