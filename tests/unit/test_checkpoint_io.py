"""Checkpoints: whole or not at all, finite or not at all."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from ai_wam.cli import checkpoint_io
from ai_wam.cli.checkpoint_io import AtomicCheckpointIO, check_finite, remove_partial


def content(value: float) -> dict:
    return {"global_step": 3, "state_dict": {"a": torch.full((100_000,), value)}}


def write_and_die(file: Path) -> None:
    """Write half of a checkpoint, then be killed."""

    def half(_: object, stream) -> None:
        stream.write(b"x" * 100_000)
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_io.torch.save = half
    AtomicCheckpointIO().save_checkpoint(content(2.0), file)


def test_a_kill_while_writing_keeps_the_last_file(tmp_path: Path):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), file)
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(file,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.equal(torch.load(file, weights_only=True)["state_dict"]["a"], torch.ones(100_000))
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_is_lightnings_own_format(tmp_path: Path):
    AtomicCheckpointIO().save_checkpoint(content(1.0), tmp_path / "new" / "last.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "new" / "last.ckpt", weights_only=True)
    assert loaded["global_step"] == 3


@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, part: str):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), file)
    good = file.read_bytes()
    with pytest.raises(
        ValueError, match=r"last\.ckpt: 1 tensors of the weights are not finite, b among them"
    ):
        AtomicCheckpointIO().save_checkpoint(
            {**content(2.0), part: {"b": torch.tensor([1.0, torch.inf])}}, file
        )
    assert file.read_bytes() == good
    check_finite({"state_dict": {"steps": torch.tensor(3)}}, "x")
