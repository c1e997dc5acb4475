"""Models from the checkpoints that `ai-wam fit` writes, for use outside the trainer."""

import hashlib
from pathlib import Path

import torch
from lightning import LightningModule

from ai_wam.cli.configs import instantiate
from ai_wam.cli.training import hyperparameters
from tasks.base import WorldActionTask


def load_task(path: str, *changes: str) -> WorldActionTask:
    """The model of a checkpoint, with its weights, ready to act.

    Args:
        path: a .ckpt file.
        changes: arguments to be set otherwise, as on the command line: "sampling_steps=10".

    Raises:
        TypeError: a checkpoint of something else than a world action model.
    """
    model = hyperparameters(path)
    task = instantiate(model, LightningModule, *changes)
    if not isinstance(task, WorldActionTask):
        raise TypeError(f"{path!r} holds a {model['class_path']}, which is no world action model")
    task.load_state_dict(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["state_dict"])
    return task.eval()


def digest(path: str) -> str:
    """Sixteen digits that tell a file from others."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
