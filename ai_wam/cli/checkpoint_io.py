"""Atomic writes of checkpoints, whose weights must be finite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from torch import Tensor

from ai_wam.errors import InvalidType, InvalidValue
from ai_wam.files.atomic import PARTIAL, as_path, atomic_file, unwritten
from ai_wam.files.weights import is_finite

_WEIGHTS = ("state_dict", "current_model_state")  # the averages, where a run keeps some, and the weights


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, then renames it, so that an interruption keeps the old one.

    Lightning builds the file in memory, writes it to the temporary folder and moves it; where that is another
    file system, the move overwrites the old file piece by piece. Here it is written straight to disk: no copy
    of it is held in memory, and disk for one more file is needed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write the file.

        Raises:
            ValueError: weights that are not finite.
            OSError: the disk is full or gone; the file that was there is as it was.
        """
        if storage_options is not None:
            raise InvalidType(f"storage_options {storage_options!r} are not known here; leave them out")
        check_finite(checkpoint, str(path))
        target = as_path(str(path))
        try:
            with atomic_file(target) as stream:
                torch.save(checkpoint, stream)
        except RuntimeError as error:  # torch's writer hides the system's error behind its own
            if isinstance(error.__context__, OSError):
                raise unwritten(error.__context__, target) from error
            raise


def check_finite(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuse weights that are not finite.

    Args:
        checkpoint: its content.
        path: of the file, for the message.

    Raises:
        ValueError: with the first tensor's name, and how many there are.
    """
    bad = [
        name
        for part in _WEIGHTS
        for name, value in checkpoint.get(part, {}).items()
        if isinstance(value, Tensor) and not is_finite(value)
    ]
    if bad:
        raise InvalidValue(
            f"{path}: {len(bad)} tensors of the weights are not finite, {bad[0]} among them; nothing was "
            "written, and the last checkpoint is as it was: begin anew from it, with a "
            "lower learning rate (--model.optimizer.lr)"
        )


def remove_partial(folder: Path) -> None:
    """Delete temporary files of checkpoints whose writing was interrupted."""
    for file in folder.glob(f"*.ckpt.*{PARTIAL}"):
        file.unlink()
