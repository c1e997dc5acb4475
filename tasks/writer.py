"""What `ai-wam predict` leaves behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ai_wam.files import whole_file
from ai_wam.types import ActionChunk, Batch


class ActionWriter(BasePredictionWriter):
    """One .npz per batch: keys, actions "b a 8", valid "b a", confidence "b a", and dt in seconds.

    Args:
        folder: where they go; made if missing.
    """

    def __init__(self, folder: Path, write_interval: Literal["batch"] = "batch") -> None:
        super().__init__(write_interval)
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ActionChunk,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch, whole or not at all."""
        file = self.folder / f"rank{trainer.global_rank}-batch{batch_idx:05d}.npz"
        arrays: dict[str, Any] = {
            "keys": np.array(batch.keys),
            "actions": prediction.actions.numpy(),
            "valid": prediction.valid.numpy(),
            "confidence": prediction.confidence.numpy(),
            "dt": np.array(prediction.dt),
        }
        with whole_file(file) as stream:
            np.savez(stream, **arrays)
