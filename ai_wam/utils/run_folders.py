"""Where a run of the trainer keeps its own files, whatever its logger.

Lightning's TensorBoard and CSV loggers have a folder for each run, `log_dir`. Loggers of other projects (W&B,
MLflow) share one folder between all runs, or have none on this machine; the run's own is then where Lightning
puts its checkpoints, below the logger's project and run id.
"""

import os
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger


def has_folder(logger: Logger) -> bool:
    """Whether a logger has a folder for each run."""
    return isinstance(logger, TensorBoardLogger | CSVLogger)


def checkpoint_root(trainer: Trainer) -> str:
    """The folder above `checkpoints` where no ModelCheckpoint names another one, as Lightning finds it."""
    if not trainer.loggers:
        return str(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def own_folder(trainer: Trainer) -> Path:
    """The folder of the run's own files; call it on all ranks, which get the first one's answer."""
    if not trainer.loggers or has_folder(trainer.loggers[0]):
        return Path(trainer.log_dir or trainer.default_root_dir)
    return Path(trainer.strategy.broadcast(checkpoint_root(trainer)))
