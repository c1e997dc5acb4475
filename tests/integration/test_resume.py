"""A fit interrupted at any moment and started again computes bitwise what an uninterrupted one does."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from ai_wam.cli import main
from ai_wam.cli.configs import config_path
from benchmarks.speed.data import MovingSquares
from datamodules.recording import write_shards

# A restored checkpoint lies in another run's folder here, so that both can be compared.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
STEPS, EPOCH = 9, 4  # steps of a fit, and of an epoch
BATCH = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a configuration, and a fit that nobody interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    write_shards(MovingSquares(3, 12), folder / "data", 2, workers=0, progress=False)
    config = yaml.safe_load(config_path("configs/quickstart.yaml").read_text())
    config["model"]["init_args"]["backbone"] = str(config_path("configs/backbone/wan-tiny.yaml"))
    config["model"]["init_args"]["prompt_dropout"] = 0.3
    config["data"]["init_args"].update(
        train=str(folder / "data"), val=str(folder / "data"), batch_size=BATCH, epoch_size=EPOCH * BATCH + 1
    )
    config["trainer"].update(log_every_n_steps=1, val_check_interval=3, limit_val_batches=1, max_steps=STEPS)
    config["trainer"]["logger"]["class_path"] = "lightning.pytorch.loggers.CSVLogger"
    config["trainer"]["logger"]["init_args"]["flush_logs_every_n_steps"] = 1
    config["trainer"]["callbacks"][1]["init_args"].update(every_n_train_steps=1, save_top_k=-1)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(patch, "whole", "--data.workers=0")
    return folder


def words(name: str, *more: str) -> list[str]:
    return ["fit", "--config=config.yaml", f"--trainer.logger.init_args.save_dir={name}", *more]


def fit(patch: pytest.MonkeyPatch, name: str, *more: str) -> None:
    patch.setattr(sys, "argv", ["ai-wam", *words(name, *more)])
    main()


def command(folder: Path, *arguments: str) -> list[str]:
    """The console script, which Lightning starts again for every rank."""
    return [str(Path(sys.executable).with_name("ai-wam")), *arguments]


def losses(folder: Path) -> dict[int, str]:
    """Training loss as written, digit for digit, by step."""
    with (folder / "fit" / "metrics.csv").open() as stream:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(stream) if row["train/loss"]}


def checkpoint(folder: Path, step: int | None = None) -> Path:
    found = folder / "fit" / "checkpoints"
    return found / "last.ckpt" if step is None else next(found.glob(f"*step={step}.ckpt"))


def assert_equal_ends(one: Path, other: Path) -> None:
    """Averages, weights, moments and the place in the data are the same bits."""
    a, b = (torch.load(checkpoint(folder), weights_only=True) for folder in (one, other))
    assert a["global_step"] == b["global_step"] == STEPS
    assert a["ShardDataModule"]["position"] == b["ShardDataModule"]["position"]
    for part in ("state_dict", "current_model_state"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    for one_state, other_state in zip(a["optimizer_states"], b["optimizer_states"], strict=True):
        for key, moments in one_state["state"].items():
            assert all(torch.equal(moments[name], other_state["state"][key][name]) for name in moments)


@pytest.mark.parametrize(
    ("step", "workers"), [(2, 0), (3, 1), (4, 2), (4, 0), (6, 2), (8, 1)]
)  # within an epoch, at its end, at a validation, and with any number of workers
def test_an_interrupted_fit_goes_on_exactly(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: int, workers: int
):
    monkeypatch.chdir(place)
    name = f"from-{step}-{workers}"
    fit(monkeypatch, name, f"--ckpt_path={checkpoint(Path('whole'), step)}", f"--data.workers={workers}")
    expected = {number: loss for number, loss in losses(Path("whole")).items() if number >= step}
    assert losses(Path(name)) == expected
    assert len(set(expected.values())) == STEPS - step
    assert_equal_ends(Path("whole"), Path(name))


def test_a_fit_by_epochs_goes_on_exactly(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Lightning restores its loops in another way where no number of steps is given."""
    monkeypatch.chdir(place)
    epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.val_check_interval=1.0"]
    epochs += ["--trainer.check_val_every_n_epoch=1", "--data.workers=1"]
    fit(monkeypatch, "epochs", *epochs)
    for step in (3, 4, 5):
        fit(monkeypatch, f"epochs-{step}", *epochs, f"--ckpt_path={checkpoint(Path('epochs'), step)}")
        expected = {number: loss for number, loss in losses(Path("epochs")).items() if number >= step}
        assert losses(Path(f"epochs-{step}")) == expected


def test_killed_at_any_moment_the_same_command_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    out = Path("killed")
    running = subprocess.Popen(
        command(place, *words("killed", "--data.workers=2")),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not checkpoint(out).is_file():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    begun = torch.load(checkpoint(out), weights_only=True)["global_step"]
    assert 0 < begun < STEPS
    fit(monkeypatch, "killed-again", f"--ckpt_path={checkpoint(out)}")
    expected = {number: loss for number, loss in losses(Path("whole")).items() if number >= begun}
    assert losses(Path("killed-again")) == expected
    assert_equal_ends(Path("whole"), Path("killed-again"))


def test_two_ranks_go_on_exactly(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1", "--data.workers=1"]

    def run(name: str, *more: str) -> None:
        line = command(place, *words(name, *ranks, *more))
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    run("ranks")
    run("ranks-again", f"--ckpt_path={checkpoint(Path('ranks'), 5)}")
    expected = {number: loss for number, loss in losses(Path("ranks")).items() if number >= 5}
    assert losses(Path("ranks-again")) == expected
    assert len(expected) == STEPS - 5
    assert_equal_ends(Path("ranks"), Path("ranks-again"))


def test_another_stream_is_refused_with_what_differs(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    write_shards(MovingSquares(4, 12), "other", 2, workers=0, progress=False)
    last = f"--ckpt_path={checkpoint(Path('whole'), 2)}"
    for change, line in {
        "--data.seed=1": "seed: 0 != 1",
        "--data.batch_size=4": "batch_size of all ranks: 2 != 4",
        "--data.train=other": "train.folder 1.episodes: 3 != 4",
        "--data.views_per_sample=1": "views_per_sample: None != 1",
        "--trainer.limit_train_batches=2": "limit_train_batches: 1.0 != 2",
    }.items():
        with pytest.raises(SystemExit, match=f"another stream of batches[\\s\\S]*{re.escape(line)}"):
            fit(monkeypatch, f"refused{change}", last, change)
