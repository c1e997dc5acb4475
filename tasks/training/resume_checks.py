"""Checks of a resumed run against its checkpoint that Lightning does not make."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from ai_wam.errors import InvalidValue
from tasks.training.optimizer import learning_rate


def check_same_optimizer(
    begun: Mapping[str, Any], asked: Mapping[str, Any], step: int, free_end: bool
) -> None:
    """Refuse other settings of the optimizer than the run began with.

    Lightning restores the optimizer, so another learning rate would do nothing, and computes the schedule
    anew, so another end would make the rate jump.

    Args:
        begun: `tasks.training.optimizer.optimizer_settings`, as a checkpoint holds them.
        asked: the same of this run.
        step: at which it resumes.
        free_end: whether the end of the schedule was set on purpose: a jump is then a warning.

    Raises:
        ValueError: settings that differ, with the learning rates of both.
    """
    differing = {
        name: (begun[name], value) for name, value in asked.items() if begun.get(name, value) != value
    }
    if not differing:
        return
    jump = "; ".join(f"{name} was {old} and is now {new}" for name, (old, new) in differing.items())
    rates = [learning_rate(step, each) for each in (begun, asked)]
    old, new = (None if rate is None else f"{rate:.3g}" for rate in rates)
    if None not in (old, new) and old != new:
        jump += f": the learning rate of step {step} would be {new} instead of {old}"
    if free_end and set(differing) == {"lr_scheduler.steps"}:
        rank_zero_warn(jump.replace("would be", "is"))
        return
    kept = " ".join(f"--model.{name} {old}" for name, (old, _) in differing.items())
    accept = "accept a jump of the schedule by setting its end (--model.lr_scheduler.steps); "
    raise InvalidValue(
        f"--ckpt_path resumes a run with its optimizer, but {jump}. Keep the run's own settings ({kept}); "
        f"{accept if set(differing) == {'lr_scheduler.steps'} else ''}or begin a new run from these weights "
        "(--weights in the place of --ckpt_path)"
    )


def check_same_names(path: str | Path, own: Iterable[str]) -> None:
    """Refuse a checkpoint that does not hold exactly the weights a model saves; no tensor is read.

    Args:
        path: of the file.
        own: names in the model's state.

    Raises:
        ValueError: names that one of the two lacks.
    """
    held = set(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["state_dict"])
    problems = {"lacks": sorted(set(own) - held), "holds unknown": sorted(held - set(own))}
    listed = "; ".join(f"it {what} {', '.join(names[:5])}" for what, names in problems.items() if names)
    if listed:
        raise InvalidValue(
            f"the weights in {str(path)!r} are not those of this model: {listed}; resume with the settings "
            "it was trained with"
        )
