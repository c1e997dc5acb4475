"""`fit` with other loggers than TensorBoard's: files beside the checkpoints, videos where they are taken."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from doubles.serving_logger import ServingLogger
from PIL import Image

from ai_wam.cli import main
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from tasks.evaluation.video_loggers import _say_without

FIT = [
    *("fit", "--config=configs/quickstart.yaml", "--data.train=data", "--data.val=data"),
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"),
    *("--trainer.log_every_n_steps=1", "--data.batch_size=1", "--data.workers=0", "--model.clip.frames=5"),
    "--model.sampling.steps=1",
]
SENTENCE = "sample videos are left out: {} takes none; TensorBoard, W&B and MLflow do"


def fit(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    squares = MovingSquares(episodes=1, frames=20, size=(64, 64), hz=20.0)
    write_shards(squares, folder / "data", workers=0, progress=False)
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["ai-wam", *FIT, *words])
    main()


def check_run(folder: Path) -> None:
    """A run's folder has its checkpoint, the settings of the run and the coverage."""
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == 2
    assert (folder / "coverage" / "epoch-00000.json").is_file()


def check_videos(files: list[Path]) -> None:
    assert files
    for file in files:
        with Image.open(file) as picture:
            assert (picture.format, picture.n_frames) == ("GIF", 5)


def test_a_logger_of_another_project_without_a_folder(tmp_path, monkeypatch, caplog):
    _say_without.cache_clear()
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    fit(monkeypatch, tmp_path, "--trainer.logger=doubles.serving_logger.ServingLogger")
    check_run(tmp_path / "project" / "3f2a")
    assert ServingLogger.hyperparameters["trainer"]["max_steps"] == 2
    assert [SENTENCE.format("ServingLogger") in record.getMessage() for record in caplog.records].count(
        True
    ) == 1
    assert not list(tmp_path.glob("config.yaml"))


def test_csv(tmp_path, monkeypatch, caplog):
    _say_without.cache_clear()
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    fit(monkeypatch, tmp_path, "--trainer.logger", "configs/logger/csv.yaml")
    run = tmp_path / "runs" / "csv" / "version_0"
    check_run(run)
    assert "val/policy/valid" in (run / "metrics.csv").read_text()
    assert SENTENCE.format("CSVLogger") in caplog.text


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(SystemExit):
        fit(monkeypatch, tmp_path, "--trainer.logger", f"configs/logger/{name}.yaml")
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"ai-wam fit: lightning\.pytorch\.loggers\.\w+ needs a package that is not installed: "
        rf"pip install '{name}>=[\d.]+'",
        last,
    )


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("default")  # of wandb
def test_wandb(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["--trainer.logger", "configs/logger/wandb.yaml", "--trainer.logger.init_args.offline=true"]
    fit(monkeypatch, tmp_path, *words)
    __import__("wandb").finish()
    (kept,) = (tmp_path / "runs" / "wandb").glob("offline-run-*")
    check_run(tmp_path / "runs" / "ai-wam" / kept.name.rpartition("-")[2])
    check_videos([*kept.glob("files/media/videos/samples/policy/*.gif")])
    data = next(kept.glob("*.wandb")).read_bytes()
    for key in (b"train/loss", b"val/policy/valid", b"val_check_interval"):
        assert key in data
    assert "left out" not in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.filterwarnings("default")  # of mlflow
def test_mlflow(tmp_path, monkeypatch, caplog):
    fit(monkeypatch, tmp_path, "--trainer.logger", "configs/logger/mlflow.yaml")
    client = __import__("mlflow").MlflowClient("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("ai-wam").experiment_id])
    check_run(tmp_path / run.info.experiment_id / run.info.run_id)
    assert {"train/loss", "val/policy/valid"} <= set(run.data.metrics)
    assert run.data.params["trainer/max_steps"] == "2"
    check_videos([*tmp_path.glob(f"mlruns/*/{run.info.run_id}/artifacts/samples/policy/0/*.gif")])
    assert "left out" not in caplog.text
