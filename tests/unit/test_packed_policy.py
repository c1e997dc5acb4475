"""A policy in one small file, and back into a checkpoint; the one of `ai-wam demo`."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ai_wam.cli import demo as module
from ai_wam.cli import run_command
from ai_wam.cli.demo import demo
from ai_wam.cli.quickstart import Spent
from ai_wam.files.json_yaml import read_json
from ai_wam.files.packed_policy import pack, unpack
from ai_wam.files.weights import read_torch

PACKED = Path(module.__file__).parents[1] / "demo" / "policy.safetensors"


def checkpoint(folder: Path, **changes: Any) -> Path:
    content = {
        "state_dict": {"layer.weight": torch.linspace(-2, 2, 12).view(3, 4), "layer.bias": torch.ones(3)},
        "hyper_parameters": {
            "_class_path": "tasks.policy.PolicyControl",
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "clip": {"frames": 9},
        },
        "global_step": 1250,
    }
    torch.save(content | changes, folder / "x.ckpt")
    return folder / "x.ckpt"


def test_weights_come_back_in_half_precision_with_their_settings(tmp_path: Path):
    given = read_torch(checkpoint(tmp_path))
    pack(tmp_path / "x.ckpt", tmp_path / "policy.safetensors")
    unpack(tmp_path / "policy.safetensors", tmp_path / "back.ckpt")
    found = read_torch(tmp_path / "back.ckpt")
    assert found["hyper_parameters"] == given["hyper_parameters"]
    assert found["global_step"] == 1250
    for name, weight in given["state_dict"].items():
        assert found["state_dict"][name].dtype == torch.float32
        torch.testing.assert_close(found["state_dict"][name], weight, rtol=1e-3, atol=1e-3)
    assert sorted(os.listdir(tmp_path)) == ["back.ckpt", "policy.safetensors", "x.ckpt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyper_parameters": {}}, "does not say which model it belongs to"),
        ({"state_dict": {"weight": torch.tensor([1.0, float("nan")])}}, "weight"),
        ({"state_dict": {"weight": torch.tensor([1.0, 1e6])}}, "half precision"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        pack(checkpoint(tmp_path, **changes), tmp_path / "policy.safetensors")
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_other_files_are_refused(tmp_path: Path):
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="says nothing of a model"):
        unpack(tmp_path / "other.safetensors", tmp_path / "x.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(PACKED.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        unpack(tmp_path / "cut.safetensors", tmp_path / "x.ckpt")


@pytest.mark.filterwarnings("ignore:No seed found")  # Lightning's, of a test; trials have their own
def test_the_packaged_policy_reaches_spheres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `ai-wam demo` runs it, in this process and under one shift."""
    points = tmp_path / "points.yaml"
    points.write_text("points: [{name: azimuth_20, shift: configs/shift/azimuth_20.yaml}]")

    def in_this_process(*words: str, threads: int) -> Spent:
        run_command(words[0], words[1:])
        return Spent(words[0], 1.0, 1.0)

    monkeypatch.setattr(module, "run_step", in_this_process)
    monkeypatch.setattr(module, "_POINTS", str(points))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/policy.ckpt").write_text("that of another version")
    demo(out=str(tmp_path / "demo"), trials=4, show=False)
    (point,) = read_json(tmp_path / "demo/sweep/sweep.json")["results"]
    assert point["mean"]["policy"] >= 0.75
    assert (tmp_path / "demo/sweep/sweep.html").is_file()
    assert PACKED.stat().st_size < 4e6
