"""A fit interrupted at any moment and started again computes bitwise what an uninterrupted one does."""

import csv
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_processes import command as in_process
from command_processes import on_two_ranks, start, wait_until

from ai_wam.cli import main
from ai_wam.cli.shipped_configs import config_path
from backbones.base import VideoBackbone
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from tasks.base import WorldActionTask

# A restored checkpoint lies in another run's folder here, so that both can be compared.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    # Lightning's CSV logger begins its file anew; the shipped logger does not.
    pytest.mark.filterwarnings("ignore:Experiment logs directory:UserWarning"),
]
STEPS, EPOCH = 9, 4  # steps of a fit, and of an epoch
BATCH = 2
SELDOM = "--trainer.callbacks.every_n_train_steps=100"  # only the last checkpoint of a fit is read


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a configuration, and a fit that was not interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    write_shards(MovingSquares(3, 12), folder / "data", 2, workers=0, progress=False)
    config = yaml.safe_load(config_path("configs/quickstart.yaml").read_text())
    config["model"]["init_args"].update(backbone=small_backbone(), prompt_dropout=0.3)
    config["model"]["init_args"]["sampling"]["steps"] = 1
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


def small_backbone() -> dict[str, Any]:
    """The tiny Wan with one block: most of a short fit is reading and writing checkpoints."""
    backbone = yaml.safe_load(config_path("configs/backbone/wan-tiny.yaml").read_text())
    backbone["init_args"]["architecture"].update(num_layers=1, num_attention_heads=2, ffn_dim=128)
    return backbone


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
def test_an_interrupted_fit_continues_exactly(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: int, workers: int
):
    monkeypatch.chdir(place)
    name = f"from-{step}-{workers}"
    file = checkpoint(Path("whole"), step)
    fit(monkeypatch, name, f"--ckpt_path={file}", f"--data.workers={workers}", SELDOM)
    expected = {number: loss for number, loss in losses(Path("whole")).items() if number >= step}
    assert losses(Path(name)) == expected
    assert len(set(expected.values())) == STEPS - step
    assert_equal_ends(Path("whole"), Path(name))


def test_a_fit_by_epochs_continues_exactly(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Lightning restores its loops in another way where no number of steps is given."""
    monkeypatch.chdir(place)
    epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--trainer.val_check_interval=1.0"]
    epochs += ["--trainer.check_val_every_n_epoch=1", "--data.workers=1"]
    fit(monkeypatch, "epochs", *epochs)
    for step in (3, 4, 5):
        file = checkpoint(Path("epochs"), step)
        fit(monkeypatch, f"epochs-{step}", *epochs, f"--ckpt_path={file}", SELDOM)
        expected = {number: loss for number, loss in losses(Path("epochs")).items() if number >= step}
        assert losses(Path(f"epochs-{step}")) == expected


def test_killed_at_any_moment_the_same_command_continues(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    out = Path("killed")
    line = words("killed", "--data.workers=2")
    running = start(place / "killed.txt", in_process, place, line, {})
    wait_until(checkpoint(out).is_file, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.join()
    begun = torch.load(checkpoint(out), weights_only=True)["global_step"]
    assert 0 < begun < STEPS
    fit(monkeypatch, "killed-again", f"--ckpt_path={checkpoint(out)}", SELDOM)
    expected = {number: loss for number, loss in losses(Path("whole")).items() if number >= begun}
    assert losses(Path("killed-again")) == expected
    assert_equal_ends(Path("whole"), Path("killed-again"))


def kill_in(patch: pytest.MonkeyPatch, hook: str, call: int, signum: int) -> None:
    """Send this process a signal when a hook of the task is called for the so-many-th time."""
    genuine, calls = getattr(WorldActionTask, hook), iter(range(1, 1000))

    def hooked(self, *arguments):
        if next(calls) == call:
            os.kill(os.getpid(), signum)
        return genuine(self, *arguments)

    patch.setattr(WorldActionTask, hook, hooked)


@pytest.mark.parametrize(
    ("hook", "call", "signum", "step"),
    [
        ("training_step", 2, signal.SIGINT, 2),
        ("training_step", 3, signal.SIGTERM, 3),  # before a validation
        ("training_step", 4, signal.SIGINT, 4),  # the last of an epoch
        ("validation_step", 2, signal.SIGTERM, 6),
    ],
)
def test_a_signal_ends_training_after_its_step(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    hook: str,
    call: int,
    signum: int,
    step: int,
):
    monkeypatch.chdir(place)
    name = f"{hook}-{call}"
    with monkeypatch.context() as patch:
        kill_in(patch, hook, call, signum)
        with pytest.raises(SystemExit) as stop:
            fit(patch, name, "--data.workers=1", SELDOM)
    assert stop.value.code == 128 + signum
    file = checkpoint(Path(name))
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("ai-wam fit: stopped by ")
    assert said[-2].endswith(f"all {step} steps are saved in {file}. Continue with:")
    line = words(name, "--data.workers=1", SELDOM, "--ckpt_path", str(file))
    assert said[-1] == f"  ai-wam {' '.join(line)}"
    whole = losses(Path("whole"))
    assert losses(Path(name)) == {number: loss for number, loss in whole.items() if number < step}
    fit(monkeypatch, f"{name}-again", f"--ckpt_path={file}", "--data.workers=0", SELDOM)
    assert losses(Path(f"{name}-again")) == {number: loss for number, loss in whole.items() if number >= step}
    assert_equal_ends(Path("whole"), Path(f"{name}-again"))


def test_a_signal_while_gradients_are_accumulated(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=3", "--model.lr_scheduler.steps=3"]
    more += ["--trainer.limit_val_batches=0", "--data.workers=0", SELDOM]
    fit(monkeypatch, "sums", *more)
    with monkeypatch.context() as patch:
        kill_in(patch, "training_step", 3, signal.SIGINT)
        with pytest.raises(SystemExit):
            fit(patch, "sums-cut", *more)
    file = checkpoint(Path("sums-cut"))
    assert torch.load(file, weights_only=True)["global_step"] == 2
    fit(monkeypatch, "sums-again", *more, f"--ckpt_path={file}")
    ends = [torch.load(checkpoint(Path(name)), weights_only=True) for name in ("sums", "sums-again")]
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, ends[1][part][name]) for name, value in ends[0][part].items())


def test_a_process_group_that_is_terminated_says_one_sentence(place: Path):
    """Loader workers get the signal, too, and all get it twice, as from `timeout`."""
    line, output = words("terminated", "--data.workers=2", "--trainer.max_steps=100000"), place / "said.txt"
    running = start(output, in_process, place, line, {})
    wait_until(checkpoint(place / "terminated").is_file, running)
    for _ in range(2):
        os.killpg(running.pid, signal.SIGTERM)
    running.join(100)
    assert running.exitcode == 128 + signal.SIGTERM
    said = output.read_text()
    assert "Traceback" not in said
    assert "stopped by SIGTERM; all " in said
    assert not list(place.glob("terminated/fit/checkpoints/*.partial"))


@pytest.fixture(scope="module")
def kept(place: Path) -> Path:
    """A run that ended at its third step, moved away; `begun` copies it to where it was made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fit(patch, "begun", "--trainer.max_steps=3", "--model.lr_scheduler.steps=9", "--data.workers=0")
    return (place / "begun").rename(place / "kept")


@pytest.fixture
def begun(place: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that run for every test, under the path that its checkpoints hold."""
    monkeypatch.chdir(place)
    shutil.copytree(kept, place / "begun")
    yield Path("begun")
    shutil.rmtree(place / "begun")


COSINE = "tasks.training.optimizer.CosineWithWarmup"
LONGER = ["--trainer.max_steps=6", "--model.lr_scheduler.steps=9", "--data.workers=0"]


def test_a_second_run_does_not_replace_the_first(begun: Path, monkeypatch: pytest.MonkeyPatch):
    good = checkpoint(begun).read_bytes()
    again = rf"an earlier run.*--ckpt_path {checkpoint(begun)}.*init_args\.version NAME"
    for more in ([], [f"--weights={checkpoint(begun)}"], [f"--ckpt_path={checkpoint(Path('whole'), 2)}"]):
        with pytest.raises(SystemExit, match=again):
            fit(monkeypatch, str(begun), *LONGER, *more)
    assert checkpoint(begun).read_bytes() == good
    other = ["--trainer.logger.init_args.version=other", "--trainer.max_steps=1"]
    fit(monkeypatch, str(begun), *LONGER, *other)
    assert (begun / "other" / "checkpoints" / "last.ckpt").is_file()


def test_an_older_file_does_not_replace_the_end(begun: Path, monkeypatch: pytest.MonkeyPatch):
    good, first = checkpoint(begun).read_bytes(), checkpoint(begun, 1)
    with pytest.raises(SystemExit, match=r"step=1\.ckpt is of step 1.*would replace .*last\.ckpt of step 3"):
        fit(monkeypatch, str(begun), *LONGER, f"--ckpt_path={first}")
    assert checkpoint(begun).read_bytes() == good


def test_the_end_between_two_checkpoints_resumes_exactly(place: Path, monkeypatch: pytest.MonkeyPatch):
    """It lies within an epoch, where Lightning's own last file begins another one."""
    monkeypatch.chdir(place)
    ends = ["--trainer.max_steps=6", "--model.lr_scheduler.steps=9", "--data.workers=0"]
    fit(monkeypatch, "ended", *ends, SELDOM)
    assert [file.name for file in checkpoint(Path("ended")).parent.iterdir()] == ["last.ckpt"]
    fit(monkeypatch, "ended-again", f"--ckpt_path={checkpoint(Path('ended'))}", "--data.workers=0", SELDOM)
    expected = {number: loss for number, loss in losses(Path("whole")).items() if number >= 6}
    assert losses(Path("ended-again")) == expected
    assert_equal_ends(Path("whole"), Path("ended-again"))


def test_a_trial_run_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = f"--config={place / 'config.yaml'}"
    monkeypatch.setattr(
        sys, "argv", ["ai-wam", "fit", config, "--trainer.fast_dev_run=1", "--data.workers=0"]
    )
    main()
    assert not list(tmp_path.rglob("*.ckpt"))


def test_two_trainings_do_not_share_a_folder(begun: Path, monkeypatch: pytest.MonkeyPatch):
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), 2); print(flush=True)"
    folder = begun / "fit" / "checkpoints"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{hold}; input()", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(SystemExit, match=f"another training writes its checkpoints into {folder} now"):
            fit(monkeypatch, str(begun), *LONGER, f"--ckpt_path={checkpoint(begun)}")
    finally:
        other.communicate(b"\n")


def test_a_loss_that_is_not_finite_ends_the_run(begun: Path, monkeypatch: pytest.MonkeyPatch):
    good, genuine, calls = checkpoint(begun).read_bytes(), VideoBackbone.loss_and_estimate, iter(range(9))

    def spoiled(*arguments):
        loss, *rest = genuine(*arguments)
        return (loss * math.nan if next(calls) == 0 else loss, *rest)

    monkeypatch.setattr(VideoBackbone, "loss_and_estimate", spoiled)
    row = r"squares-000\d@\d+ \(policy\)"
    at = f"loss of optimizer step 4 is not finite.*{row}, {row}"
    with pytest.raises(SystemExit, match=at):
        fit(monkeypatch, str(begun), *LONGER, f"--ckpt_path={checkpoint(begun)}")
    assert checkpoint(begun).read_bytes() == good


def test_a_full_disk_ends_the_run_and_keeps_the_last_file(begun: Path, monkeypatch: pytest.MonkeyPatch):
    good, limits = checkpoint(begun).read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    names = sorted(file.name for file in checkpoint(begun).parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(SystemExit, match="File too large: nothing was written"):
            fit(monkeypatch, str(begun), *LONGER, f"--ckpt_path={checkpoint(begun)}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint(begun).read_bytes() == good
    assert sorted(file.name for file in checkpoint(begun).parent.iterdir()) == names


def test_the_last_steps_are_saved_and_without_a_logger_nothing_is_overwritten(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    mine = (place / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(mine)
    none = [
        "--trainer.logger=false",
        "--trainer.callbacks.every_n_train_steps=2",
        "--trainer.callbacks.save_top_k=1",
    ]
    monkeypatch.setattr(sys, "argv", ["ai-wam", "fit", "--config=config.yaml", "--data.workers=0", *none])
    main()
    assert (tmp_path / "config.yaml").read_bytes() == mine
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == STEPS


def test_a_longer_run_keeps_its_learning_rate_or_says_the_jump(begun: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        SystemExit, match=r"lr_scheduler\.steps was 9 and is now 6: the learning rate of step 3 would"
    ):
        fit(
            monkeypatch,
            str(begun),
            LONGER[0],
            f"--model.lr_scheduler={{class_path: {COSINE}, init_args: {{warmup_steps: 100, steps: null}}}}",
            f"--ckpt_path={checkpoint(begun)}",
        )
    sgd = "--model.optimizer=torch.optim.SGD"
    with pytest.raises(SystemExit, match=r"optimizer was tasks\S+Muon and is now torch\S+SGD.*Keep the run"):
        fit(monkeypatch, str(begun), *LONGER, sgd, f"--ckpt_path={checkpoint(begun)}")
    with pytest.raises(SystemExit, match=r"optimizer\.lr was 0\.008 and is now 0\.1"):
        fit(monkeypatch, str(begun), *LONGER, "--model.optimizer.lr=0.1", f"--ckpt_path={checkpoint(begun)}")


def test_two_ranks_continue_exactly(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1", "--data.workers=1"]

    def run(name: str, *more: str) -> None:
        on_two_ranks(place, name, *words(name, *ranks, *more))

    run("ranks")
    run("ranks-again", f"--ckpt_path={checkpoint(Path('ranks'), 5)}")
    expected = {number: loss for number, loss in losses(Path("ranks")).items() if number >= 5}
    assert losses(Path("ranks-again")) == expected
    assert len(expected) == STEPS - 5
    assert_equal_ends(Path("ranks"), Path("ranks-again"))


@pytest.mark.slow  # starts four more processes
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all(place: Path, monkeypatch: pytest.MonkeyPatch, rank: int):
    monkeypatch.chdir(place)
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1", "--data.workers=1"]
    line = command(place, *words(f"one-{rank}", *ranks, "--trainer.max_steps=100000"))
    running = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline, file = time.monotonic() + 300, checkpoint(Path(f"one-{rank}"))
    while not file.is_file():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    second = next(pid for pid in children if b"ai-wam" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(second) if rank else running.pid, signal.SIGTERM)
    said = running.communicate(timeout=100)[1]
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    saved = torch.load(file, weights_only=True)["global_step"]
    assert f"all {saved} steps are saved" in said


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
