"""One training, one folder: a second run neither replaces what a first one left nor writes beside it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger

from ai_wam.checkpoint_io import remove_partial
from ai_wam.cli.configs import instantiate
from ai_wam.errors import CannotContinue, InvalidValue
from datamodules.folder_lock import lock_folder, unlock_folder
from datamodules.shard_format import ShardError

_OTHER = "--trainer.logger.init_args.version NAME (or save_dir FOLDER)"


class RunFolder(SaveConfigCallback):
    """Keeps other trainings out of a run's folder while it lasts, and writes config.yaml beside the curves.

    Without a logger no folder is the run's own, and config.yaml is not written.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Claim the folder for a training, then write the configuration, once.

        Raises:
            RuntimeError: another process trains there.
        """
        if stage == "fit" and trainer.is_global_zero:
            _claim(actual_folder(trainer))
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let other processes in."""
        unlock_folder(actual_folder(trainer) or Path())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let other processes in."""
        unlock_folder(actual_folder(trainer) or Path())


def planned_folder(settings: Mapping[str, Any]) -> Path | None:
    """Where a run of these trainer settings would keep its checkpoints; None for a new folder, or a store's.

    Args:
        settings: the trainer's, as plain values.
    """
    for callback in settings.get("callbacks") or []:
        arguments = callback.get("init_args") or {}
        if callback["class_path"].endswith(".ModelCheckpoint") and arguments.get("dirpath"):
            return _local(arguments["dirpath"])
    logger = settings.get("logger")
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if logger is False:
        return _local(os.path.join(settings.get("default_root_dir") or ".", "checkpoints"))
    if not isinstance(logger, Mapping):
        return None  # Lightning's own, which begins a new version
    return _beside(instantiate(logger, Logger))  # type: ignore[type-abstract]  # an interface is asked for


def saved_folders(settings: Mapping[str, Any]) -> list[Path]:
    """Where runs of these trainer settings keep their checkpoints: one folder, or one of every version.

    Args:
        settings: the trainer's, as plain values.
    """
    folder = planned_folder(settings)
    if folder is None:
        folder = Path(settings.get("default_root_dir") or ".", "lightning_logs", "version_0", "checkpoints")
    versions = folder.parent.parent.glob("version_*/checkpoints") if not folder.exists() else ()
    return sorted(versions) or [folder]


def actual_folder(trainer: Trainer) -> Path | None:
    """Where a trainer keeps its checkpoints; None where it keeps none, or in a store."""
    saver = trainer.checkpoint_callback
    if not isinstance(saver, ModelCheckpoint):
        return None
    if saver.dirpath:
        return _local(str(saver.dirpath))
    if trainer.loggers:
        return _beside(trainer.loggers[0])
    return _local(os.path.join(trainer.default_root_dir, "checkpoints"))


def check_free(folder: Path | None, ckpt_path: str | None) -> None:
    """Refuse to begin a run where another one's checkpoints lie; that one may be continued.

    Args:
        folder: of the new run's checkpoints.
        ckpt_path: the checkpoint that the run resumes.

    Raises:
        ValueError: names both ways out.
    """
    held = sorted(folder.glob("*.ckpt")) if folder is not None else []
    resumed = None if ckpt_path is None else Path(ckpt_path).resolve()
    if not held or (resumed is not None and resumed.parent == held[0].resolve().parent):
        return
    last = next((file for file in held if file.name == "last.ckpt"), held[-1])
    raise InvalidValue(
        f"{folder} holds the checkpoints of an earlier run, which a new run would replace. "
        f"Continue that run with --ckpt_path {last}, or give this one a folder of its own with {_OTHER}"
    )


def _claim(folder: Path | None) -> None:
    """Lock a folder for this process; remove files of checkpoints whose writing a kill cut off."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock_folder(folder)
    except ShardError as error:
        raise CannotContinue(
            f"another training writes its checkpoints into {folder} now. Wait for it or stop it, "
            f"or give this one a folder of its own with {_OTHER}"
        ) from error
    os.register_at_fork(
        after_in_child=lambda: unlock_folder(folder)
    )  # loader workers may outlive this process
    remove_partial(folder)


def _beside(logger: Logger) -> Path | None:
    """Where ModelCheckpoint puts files of a run with this logger."""
    if logger.save_dir is None:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return _local(os.path.join(logger.save_dir, str(logger.name), version, "checkpoints"))


def _local(folder: str) -> Path | None:
    return None if "://" in folder else Path(folder)
