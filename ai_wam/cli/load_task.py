"""Models from the checkpoints that `ai-wam fit` writes, for use outside the trainer."""

import hashlib
from pathlib import Path

from lightning import LightningModule

from ai_wam.cli.checkpoint_settings import check_plans, hyperparameters, state_dict
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.errors import InvalidType
from ai_wam.utils.class_paths import class_path
from tasks.base import WorldActionTask


def load_task(path: str, *changes: str, plan: str | None = None) -> WorldActionTask:
    """The model of a checkpoint, with its weights, ready to act.

    Args:
        path: a .ckpt file.
        changes: arguments to be set otherwise, as on the command line: "sampling.steps=10".
        plan: that it must have been trained on, or nothing is built.

    Raises:
        TypeError: a checkpoint of something else than a world action model.
    """
    if plan is not None:
        check_plans(hyperparameters(path), [plan])
    task = load_model(path, *changes)
    if not isinstance(task, WorldActionTask):
        raise InvalidType(f"{path!r} holds a {class_path(task)}, which is no world action model")
    return task


def load_model(path: str, *changes: str) -> LightningModule:
    """Any model of a checkpoint, with its weights; see `load_task`."""
    model = instantiate(hyperparameters(path), LightningModule, *changes)
    model.load_state_dict(state_dict(path))
    return model.eval()


def digest(path: str) -> str:
    """The first sixteen digits of a file's SHA-256."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
