"""Sharded training (FSDP2) on two processes: the mathematics of one; Lightning's strategy, resumed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ai_wam.cli import main
from ai_wam.cli.configs import config_path, instantiate
from backbones.base import VideoBackbone

TINY = sorted(map(str, (Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml")))
STRATEGY = "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy"
SHARDED = ["data_parallel_size=2", "tensor_parallel_size=1", "save_distributed_checkpoint=false"]


def test_two_processes_compute_what_one_does(tmp_path: Path):
    script = [sys.executable, str(Path(__file__).with_name("sharded_step.py"))]
    running = [
        subprocess.Popen(
            [*script, str(rank), str(tmp_path / "store"), *TINY],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    for process in running:
        output = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, output
        assert output.count("of the parameters") == len(TINY)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = ["--source.init_args.episodes_per_task=4", "--episodes_per_shard=2", "--workers=0", "--out=data"]
    monkeypatch.setattr(
        sys, "argv", ["ai-wam", "collect", "--config=configs/collect/reach_target.yaml", *words]
    )
    main()
    return tmp_path / "data"


def fit(folder: Path, steps: int, *more: str) -> Path:
    words = [f"--data.train={folder}", f"--data.val={folder}", "--data.batch_size=2", "--data.workers=0"]
    words += ["--trainer.devices=2", STRATEGY, *(f"--trainer.strategy.init_args.{word}" for word in SHARDED)]
    words += [
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
    ]
    command = [
        str(Path(sys.executable).with_name("ai-wam")),
        "fit",
    ]  # Lightning starts it again per rank
    done = subprocess.run(
        [*command, "--config=configs/quickstart_joint.yaml", *words, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path("runs/quickstart_joint/fit/checkpoints/last.ckpt")


@pytest.fixture
def released(tmp_path: Path) -> list[str]:
    """A word that takes the quickstart's network from a released checkpoint."""
    torch.manual_seed(0)
    twin = instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)
    twin.Denoiser.from_config(dict(twin.denoiser.config)).save_pretrained(tmp_path / "wan" / twin.folder)
    described = yaml.safe_load(config_path("configs/backbone/wan-tiny.yaml").read_text())
    del described["init_args"]["architecture"]
    described["init_args"]["pretrained"] = str(tmp_path / "wan")
    (tmp_path / "wan.yaml").write_text(yaml.safe_dump(described))
    return [f"--model.backbone={tmp_path / 'wan.yaml'}"]


def test_a_sharded_fit_saves_one_file_and_goes_on(data: Path, released: list[str], tmp_path: Path):
    saved = torch.load(fit(data, 2, *released), weights_only=True)
    resumed = torch.load(
        fit(data, 3, *released, "--ckpt_path=runs/quickstart_joint/fit/checkpoints/last.ckpt"),
        weights_only=True,
    )
    began = load_file(tmp_path / "wan/transformer/diffusion_pytorch_model.safetensors")
    for name, value in saved["current_model_state"].items():
        if (plain := name.removeprefix("backbone.denoiser.")) in began:
            assert float((value - began[plain]).abs().max()) < 2e-3, name  # two steps of warm-up
    assert (saved["global_step"], resumed["global_step"]) == (2, 3)
    for checkpoint in (saved, resumed):
        state, current = checkpoint["state_dict"], checkpoint["current_model_state"]
        assert set(current) == set(state)
        assert all(name.startswith("backbone.denoiser.") for name in state)
        assert all(type(value) is torch.Tensor and value.isfinite().all() for value in state.values())
        moments = checkpoint["optimizer_states"][0]["state"]
        assert len(moments) == len(current)
        assert all(float(moment["step"]) == checkpoint["global_step"] for moment in moments.values())
        assert any(not torch.equal(state[name], current[name]) for name in current)
