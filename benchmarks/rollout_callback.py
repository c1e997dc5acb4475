"""Closed-loop evaluation during training, since a falling loss is no evidence that a model can act."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.fsdp import FSDPModule

from ai_wam.errors import InvalidType, InvalidValue
from ai_wam.types import Clip, Policy
from ai_wam.utils.ema import AveragedWeights
from benchmarks.evaluation.benchmark import Benchmark, TrialResult
from benchmarks.simulator import Trial


class RolloutCallback(Callback):
    """Runs a few trials every so often and logs `rollout/<task>/success` and the simulator's diagnostics.

    The first rank runs them, the others wait. Averaged weights are used where the trainer keeps some. Random
    states are restored, so training continues as if no trial had been run.

    Args:
        benchmark: simulator and protocol; the module's `clip` has the views and size.
        every_n_steps: optimizer steps from one rollout to the next, or
        every_n_epochs: epochs; exactly one of the two.
        trials: trials of every task, the first of the protocol's.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        trials: int = 8,
    ) -> None:
        intervals = [every for every in (every_n_steps, every_n_epochs) if every is not None]
        if len(intervals) != 1 or intervals[0] < 1 or trials < 1:
            raise InvalidValue(
                f"RolloutCallback: give exactly one of every_n_steps ({every_n_steps}) and every_n_epochs "
                f"({every_n_epochs}), at least 1, and at least one trial ({trials})"
            )
        self.benchmark = benchmark
        self.every_n_steps, self.every_n_epochs, self.trials = every_n_steps, every_n_epochs, trials
        self._last_step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Roll out every `every_n_steps` optimizer steps; several batches may make one step."""
        step = trainer.global_step
        if self.every_n_steps is not None and step > self._last_step and step % self.every_n_steps == 0:
            self._last_step = step
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Roll out every `every_n_epochs` epochs."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the simulators."""
        self.benchmark.close()

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        scalars = self._roll_out(trainer, module) if trainer.is_global_zero else None
        # every rank's checkpoint callback must get the same metrics
        scalars = trainer.strategy.broadcast(scalars)
        assert scalars is not None
        for name, value in scalars.items():
            # The trainer's own logging waits for its log_every_n_steps, which may never fall on this step.
            module.log(name, value, logger=False, rank_zero_only=True)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.global_step)

    def _roll_out(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        clip = getattr(module, "clip", None)
        if not isinstance(module, Policy) or not isinstance(clip, Clip):
            raise InvalidType(
                f"RolloutCallback: {type(module).__name__} is no policy; it needs reset(episodes), "
                "predict_action(observation) and a clip"
            )
        if any(isinstance(part, FSDPModule) for part in module.modules()):
            raise InvalidValue(
                "RolloutCallback: the model is sharded, and only the first rank would call it; leave the "
                "callback out and test a checkpoint with `ai-wam test`"
            )
        with ExitStack() as stack:
            stack.enter_context(_evaluating(module))
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, AveragedWeights):
                    stack.enter_context(callback.averaged(module))
            stack.enter_context(
                torch.random.fork_rng([module.device] if module.device.type == "cuda" else [])
            )
            results = self.benchmark.run(module, self._chosen(), clip, device=module.device)
        return _scalars(results)

    def _chosen(self) -> list[Trial]:
        per_task: dict[str, list[Trial]] = {}
        for trial in self.benchmark.trials():
            per_task.setdefault(trial.task, []).append(trial)
        return [trial for trials in per_task.values() for trial in trials[: self.trials]]


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Context of evaluation mode; restores each part's mode, since frozen parts may be in it always."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _scalars(results: Sequence[TrialResult]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for task in dict.fromkeys(result.trial.task for result in results):
        runs = [result for result in results if result.trial.task == task]
        scalars[f"rollout/{task}/success"] = sum(run.success for run in runs) / len(runs)
        for name in dict.fromkeys(name for run in runs for name in run.diagnostics):
            values = [
                run.diagnostics[name] for run in runs if isfinite(run.diagnostics.get(name, float("nan")))
            ]
            if values:
                scalars[f"rollout/{task}/{name}"] = sum(values) / len(values)
    return scalars
