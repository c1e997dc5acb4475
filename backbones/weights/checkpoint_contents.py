"""What a checkpoint holds of a backbone: not what comes from the released model and never changes."""

from typing import Any

from torch import Tensor


def drop_released(module: Any, state: dict[str, Tensor], prefix: str, _: dict[str, Any]) -> None:
    """Take what a backbone does not save out of a state, when it is asked for."""
    for name in module.unsaved():
        state.pop(prefix + name, None)


def forgive_released(module: Any, incompatible: Any) -> None:
    """Do not miss it, when a state is loaded."""
    own = module.unsaved()
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if not any(key.endswith(name) for name in own)
    ]
