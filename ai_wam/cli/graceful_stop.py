"""A signal during training: the optimizer step is finished and saved, and the message says how to resume.

Before and after training, and in every other command, signals end the process at once (`ai_wam.cli.signals`).
The exit status is 128 plus the signal's number in both cases: 130 and 143.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from ai_wam.cli.errors import Ended
from ai_wam.cli.run_folder import savers
from datamodules.shard_datamodule import ShardDataModule

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_LAST = f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
_SAME = 1.0  # seconds within which signals are one
_REPLACED = ("--ckpt_path", "--weights")  # by the checkpoint that a continued run begins with


class Stopped(BaseException):
    """Training ended because of a signal. No `Exception`, so that no library takes it for a failure.

    Args:
        signum: the signal.
        step: optimizer steps so far.
        file: where they are saved; None without a ModelCheckpoint.
    """

    def __init__(self, signum: int, step: int, file: str | None) -> None:
        super().__init__(signum, step, file)
        self.signum, self.step, self.file = signum, step, file

    def sentence(self, words: Sequence[str]) -> str:
        """What happened, and how to continue a command of these words."""
        begin = f"ai-wam {words[0]}: stopped by {_NAMES[signal.Signals(self.signum)]}"
        if self.file is None:
            return f"{begin} after step {self.step}; the trainer has no ModelCheckpoint, so nothing was saved"
        again = shlex.join(["ai-wam", *_without(words, _REPLACED), "--ckpt_path", self.file])
        return f"{begin}; all {self.step} steps are saved in {self.file}. Continue with:\n  {again}"


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Command-line words without some options and their values."""
    kept, rest = [], iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in options:
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept


@contextmanager
def stopping(words: Sequence[str]) -> Iterator[None]:
    """End the process where `SavesWhenStopped` ended the training.

    Args:
        words: of the command; the sentence repeats them.

    Raises:
        SystemExit: of 128 plus the signal's number; of 0 on ranks other than the first, which speaks for all.
    """
    try:
        yield
    except Stopped as stop:
        if rank():
            raise Ended("", 0) from None
        print(f"\n{stop.sentence(words)}", file=sys.stderr, flush=True)
        raise Ended(stop.sentence(words), 128 + stop.signum) from None


class SavesWhenStopped(Callback):
    """Finishes the optimizer step that a signal interrupts, saves it as last.ckpt, ends the training.

    It saves where a step is whole, since a resumed run begins with the batch after it, and raises `Stopped`
    at the next hook, when the step has been logged. A validation that is interrupted is not repeated. All
    processes stop at the same step if one of them is asked to. A second signal, a second later or more since
    `timeout` and others send it twice, ends the process at once.

    A training that ends by itself between two of ModelCheckpoint's saves is saved, too.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._asked_at = 0.0
        self._saved: str | None = None
        self._whole = 0  # optimizer steps that were finished
        self._kept: int | None = None  # the step that `_save` saved, or with which training began
        self._before: dict[int, Any] = {}  # handlers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save. An ignored signal stays ignored, as `nohup` wants it."""
        self._whole = self._kept = trainer.global_step
        if _leaves_nothing(trainer):
            for saver in savers(trainer):
                saver.save_last = False
        found = {number: signal.getsignal(number) for number in _NAMES}
        self._before = {number: old for number, old in found.items() if old is not signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # untyped in Lightning
        if isinstance(data, ShardDataModule):  # whose workers handle signals themselves
            os.register_at_fork(after_in_child=self._block)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if asked to, or at the last step, once gradients are not being accumulated."""
        if trainer.global_step > self._whole:
            self._whole = trainer.global_step
            if self._any_asked(trainer):
                self._saved = self._save(trainer)
            elif trainer.global_step == trainer.max_steps:
                self._save(trainer)  # now, as at the end Lightning takes the epoch for a whole one

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End where the last step was saved."""
        self._stop_if_saved()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End where the last step was saved."""
        self._stop_if_saved()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End where the last step was saved, unless it was the run's last."""
        if not 0 <= trainer.max_steps <= trainer.global_step:
            self._stop_if_saved()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Leave a validation between two batches: every step before it is whole."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._any_asked(trainer):
            # The resumed run does not continue this validation, so it must not find its counts.
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
            self._saved = self._save(trainer)
            self._stop_if_saved()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was trained since the last checkpoint, where the last epoch is whole."""
        self._restore_handlers()
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop handling signals; other processes that Lightning started would wait for this one."""
        self._restore_handlers()
        launcher: Any = trainer.strategy.launcher
        if not isinstance(exception, Stopped) and trainer.is_global_zero and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGKILL)

    def _block(self) -> None:
        """In a loader's worker that has just been forked: signals wait until it handles them itself."""
        if self._before:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._before.keys())

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self._asked is not None:
            if time.monotonic() - self._asked_at > _SAME:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        self._asked, self._asked_at = signum, time.monotonic()
        if not rank():
            name = _NAMES[signal.Signals(signum)]
            print(f"\nai-wam fit: {name}: finishing this step, then saving it", file=sys.stderr, flush=True)

    def _any_asked(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop."""
        asked = self._asked is not None
        return (
            asked if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(asked, all=False)
        )

    def _save(self, trainer: Trainer) -> str:
        """The file that holds this step, written unless ModelCheckpoint has done it; "" without one."""
        saver = next(iter(savers(trainer)), None)
        if saver is None or _leaves_nothing(trainer):
            return ""
        file = saver.last_model_path or os.path.join(str(saver.dirpath), _LAST)
        by_saver = saver._last_global_step_saved if saver.last_model_path else None
        wanted = self._asked is not None or saver.save_last
        if wanted and trainer.global_step not in (by_saver, self._kept):
            trainer.save_checkpoint(file)
            self._kept = trainer.global_step
            saver.last_model_path = saver._last_checkpoint_saved = file  # or it would begin a last-v1.ckpt
        return file

    def _stop_if_saved(self) -> None:
        if self._saved is not None:
            raise Stopped(self._asked or signal.SIGTERM, self._whole, self._saved or None)


def _leaves_nothing(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # its connector sets it


def rank() -> int:
    """Of this process, also before there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0))
