"""One training per folder: a second run neither overwrites the files of a first one nor adds to them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from ai_wam.cli.checkpoint_io import remove_partial
from ai_wam.cli.plain_settings import bare
from ai_wam.errors import CannotContinue, InvalidValue, UserError
from ai_wam.files.weights import read_torch
from ai_wam.utils.run_folders import checkpoint_root, has_folder, own_folder
from datamodules.shards.format import ShardError
from datamodules.shards.lock import lock_folder, unlock_folder

_OTHER = "--trainer.logger.init_args.version NAME (or save_dir FOLDER)"
_VERSIONED = ("TensorBoardLogger", "CSVLogger")  # of Lightning, whose folders follow from their settings
_DEFAULT: Mapping[str, Any] = {
    "class_path": _VERSIONED[0],
    "init_args": {},
}  # the logger, where none is named


class RunFolder(SaveConfigCallback):
    """Keeps other trainings out of a run's folders while it lasts, and writes config.yaml beside its curves.

    The configuration is written with the first batch, when nothing is left that could refuse the run, and
    without a logger nowhere, since no folder is the run's own then.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Claim the folders of a training, or refuse it on all processes.

        Raises:
            RuntimeError: another run's checkpoints lie there, or another process trains there.
        """
        if stage != "fit":
            return
        refused, resumed = None, self.config.get("ckpt_path")  # the trainer knows it later
        if trainer.is_global_zero:
            try:
                for folder in actual_folders(trainer):
                    check_free(folder, resumed)
                    _claim(folder)
                _clean(resumed)
            except UserError as error:
                refused = str(error)
        if (refused := trainer.strategy.broadcast(refused)) is not None:
            raise CannotContinue(refused)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the configuration, once."""
        if not trainer.loggers or self.already_saved:
            return
        if has_folder(trainer.loggers[0]):
            super().setup(trainer, pl_module, "fit")
            return
        folder = own_folder(trainer)  # asks all ranks
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config,
                folder / self.config_filename,
                skip_none=False,
                overwrite=True,
                multifile=self.multifile,
            )
            self.save_config(trainer, pl_module, "fit")
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the settings in the tables of W&B and MLflow, too."""
        settings = {name: value for name, value in bare(self.config).items() if name != "config"}
        for logger in trainer.loggers:
            if not has_folder(logger):
                logger.log_hyperparams(settings)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the locks."""
        for folder in actual_folders(trainer):
            unlock_folder(folder)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the locks."""
        self.teardown(trainer, pl_module, "fit")


def planned_folder(settings: Mapping[str, Any]) -> Path | None:
    """Where a run of these trainer settings would keep its checkpoints; None where they do not say it.

    They do not where each run begins a new version, in a store, and with loggers of other projects.

    Args:
        settings: the trainer's, as plain values.
    """
    for callback in _listed(settings.get("callbacks")):
        arguments = callback.get("init_args") or {}
        if callback["class_path"].endswith(".ModelCheckpoint") and arguments.get("dirpath"):
            return _local(arguments["dirpath"])
    root, logger = settings.get("default_root_dir") or ".", settings.get("logger")
    if logger is False:
        return _local(os.path.join(root, "checkpoints"))
    folder, version = _logger_folder(logger, root)
    return None if folder is None or version is None else _local(os.path.join(folder, version, "checkpoints"))


def saved_folders(settings: Mapping[str, Any]) -> list[Path]:
    """Where runs of these trainer settings keep their checkpoints: one folder, or one of every version.

    Args:
        settings: the trainer's, as plain values.
    """
    planned = planned_folder(settings)
    if planned is not None:
        return [planned]
    folder, _ = _logger_folder(settings.get("logger"), settings.get("default_root_dir") or ".")
    local = None if folder is None else _local(folder)
    if local is None:
        return []
    return sorted(local.glob("version_*/checkpoints")) or [local / "version_0" / "checkpoints"]


def savers(trainer: Trainer) -> list[ModelCheckpoint]:
    """A trainer's ModelCheckpoints, those that keep a last.ckpt first."""
    found = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return sorted(found, key=lambda each: not each.save_last)


def actual_folders(trainer: Trainer) -> list[Path]:
    """Where a trainer keeps its checkpoints on this machine."""
    beside = os.path.join(checkpoint_root(trainer), "checkpoints")
    folders = [_local(str(each.dirpath or beside)) for each in savers(trainer)]
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def check_free(folder: Path | None, ckpt_path: Any) -> None:
    """Refuse to begin a run where another one's checkpoints lie; that one may be continued, from its end.

    Args:
        folder: of the new run's checkpoints.
        ckpt_path: the checkpoint that the run resumes.

    Raises:
        ValueError: names the ways out.
    """
    held = sorted(folder.glob("*.ckpt")) if folder is not None else []
    if not held:
        return
    last = next((file for file in held if file.name == "last.ckpt"), held[-1])
    if ckpt_path is None or Path(ckpt_path).resolve().parent != last.parent.resolve():
        raise InvalidValue(
            f"{folder} holds the checkpoints of an earlier run, which a new run would replace. Continue that "
            f"run with --ckpt_path {last}, or give this one a folder of its own with {_OTHER}"
        )
    begun, ended = _steps(Path(ckpt_path)), _steps(last)
    if begun < ended:
        raise InvalidValue(
            f"{ckpt_path} is of step {begun}, and a run that resumes it here would replace {last} of step "
            f"{ended}. Resume that one, or give this run a folder of its own with {_OTHER}"
        )


def _steps(file: Path) -> int:
    """Optimizer steps behind a checkpoint; 0 of a damaged one, which may be replaced."""
    try:
        return int(read_torch(str(file)).get("global_step", 0))
    except UserError:
        return 0


def _claim(folder: Path) -> None:
    """Lock a folder for this process; remove temporary files of checkpoints left by a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock_folder(folder)
    except ShardError as error:
        raise CannotContinue(
            f"another training writes its checkpoints into {folder} now. Wait for it or stop it, or give "
            f"this one a folder of its own with {_OTHER}"
        ) from error
    # Workers of loaders may outlive this process by seconds.
    os.register_at_fork(after_in_child=lambda: unlock_folder(folder))
    remove_partial(folder)


def _clean(ckpt_path: Any) -> None:
    """Remove what a kill cut off in the folder of the run that is resumed, unless someone trains there."""
    folder = None if ckpt_path is None else _local(str(Path(ckpt_path).parent))
    if folder is None or not folder.is_dir():
        return
    try:
        lock_folder(folder)
    except ShardError:
        return
    remove_partial(folder)
    unlock_folder(folder)


def _logger_folder(logger: Any, root: str) -> tuple[str | None, str | None]:
    """A logger's folder above its versions, and the version that its settings fix; None if unknown."""
    named = [each for each in _listed(logger) if each is not True]
    first: Mapping[str, Any] = named[0] if named else _DEFAULT
    if first["class_path"].rpartition(".")[2] not in _VERSIONED:
        return None, None
    arguments = first.get("init_args") or {}
    version, name = arguments.get("version"), arguments.get("name", "lightning_logs")
    folder = os.path.join(arguments.get("save_dir") or root, name or "")
    return folder, f"version_{version}" if isinstance(version, int) else version


def _listed(value: Any) -> list[Any]:
    """A list of one, as Lightning accepts single items."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _local(folder: str) -> Path | None:
    return None if "://" in folder else Path(folder)
