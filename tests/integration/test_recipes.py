"""Every training as shipped, at a tiny size: its own precision, strategy, clipping, callbacks and caches.

Places, sizes, the accelerator and the number of steps differ from the files, nothing else.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_processes import on_two_ranks
from safetensors.torch import load_file

from ai_wam.cli import main
from ai_wam.cli.shipped_configs import config_path
from benchmarks.speed.moving_squares import MovingSquares
from benchmarks.speed.recipes import write_release
from datamodules.shards.convert_source import write_shards

RECIPES = sorted(file.stem for file in config_path("configs/recipes").glob("*.yaml"))
STEPS = 2  # of the first fit; the second resumes it for as many more
MIXED = {"rlbench": (20.0, ("front", "side", "wrist")), "droid": (15.0, ("front", "side", "wrist"))}
MIXED["bridge"] = (5.0, ("front",))

# A resumed recipe begins a version folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with the views that recipes and the mixture of data sets name, and a release."""
    folder = tmp_path_factory.mktemp("recipes")
    write_shards(MovingSquares(3, 12), folder / "data/train", 2, workers=0, progress=False)
    for name, (hz, views) in MIXED.items():
        for split in (name, f"{name}_val"):
            squares = MovingSquares(2, 9, hz=hz, views=views)
            write_shards(squares, folder / "data" / split, 2, workers=0, progress=False)
    write_release(folder / "wan", tiny=True)
    return folder


def shipped(name: str) -> dict[str, Any]:
    return yaml.safe_load(config_path(f"configs/{name}.yaml").read_text())


def short(name: str, steps: int) -> list[str]:
    """The words that run a training for a few steps; a validation ends each of the two fits."""
    content = shipped(name)
    every = STEPS * content["trainer"].get("accumulate_grad_batches", 1)  # batches
    schedule = content["model"]["init_args"].get("lr_scheduler", {}).get("class_path", ".CosineWithWarmup")
    return [
        *("fit", f"--config=configs/{name}.yaml", "--trainer.accelerator=cpu"),
        *(f"--trainer.max_steps={steps}", "--model.lr_scheduler.warmup_steps=1"),
        *([f"--model.lr_scheduler.steps={2 * STEPS}"] if schedule.endswith(".CosineWithWarmup") else []),
        *(f"--trainer.val_check_interval={every}", "--trainer.limit_val_batches=1"),
        *("--trainer.log_every_n_steps=1", f"--trainer.callbacks.every_n_train_steps={STEPS}"),
        "--model.sampling.steps=1",
    ]


def tiny(name: str, steps: int, place: Path) -> list[str]:
    """The words that run a recipe of a released model at a tiny size."""
    release, init = place / "wan", "--model.backbone.init_args"
    return [
        *short(name, steps),
        *(f"{init}.pretrained={release}", f"{init}.prompts.init_args.pretrained={release}"),
        *("--model.clip.frames=5", "--model.clip.size=[32,32]", "--data.val=data/train", "--data.workers=1"),
        "--data.batch_size=1",
    ]


SHARDED = ["--trainer.devices=2", "--trainer.strategy.init_args.data_parallel_size=2"]


def run(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; for several, the console script, which Lightning starts again for every rank."""
    if shipped(name)["trainer"]["devices"] == 1:
        monkeypatch.setattr(sys, "argv", ["ai-wam", *words])
        main()
        return
    command = [str(Path(sys.executable).with_name("ai-wam")), *words, *SHARDED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def resume(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the fit before it; for several processes, those are started without the console script."""
    if shipped(name)["trainer"]["devices"] == 1:
        run(name, words, monkeypatch)
    else:
        on_two_ranks(Path.cwd(), "resumed", *words, *SHARDED)


def read(file: str) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_validates_saves_and_resumes(
    recipe: str, place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    name = f"recipes/{recipe}"
    places = [f"runs/{recipe}/version_{version}" for version in range(2)]
    files = [f"{folder}/checkpoints/last.ckpt" for folder in places]
    run(name, tiny(name, STEPS, place), monkeypatch)
    resume(name, [*tiny(name, 2 * STEPS, place), f"--ckpt_path={files[0]}"], monkeypatch)
    saved, resumed = map(read, files)
    assert (saved["global_step"], resumed["global_step"]) == (STEPS, 2 * STEPS)
    assert saved["state_dict"].keys() == saved["current_model_state"].keys()
    released = load_file(place / "wan/transformer/diffusion_pytorch_model.safetensors")
    for checkpoint in (saved, resumed):
        weights, averages = checkpoint["current_model_state"], checkpoint["state_dict"]
        assert all(type(value) is torch.Tensor and value.dtype == torch.float32 for value in weights.values())
        assert all(value.isfinite().all() for value in (*weights.values(), *averages.values()))
        moments = checkpoint["optimizer_states"][0]["state"]
        assert len(moments) == len(weights)
        assert all(float(moment["step"]) == checkpoint["global_step"] for moment in moments.values())
    for key, value in saved["current_model_state"].items():
        if (plain := key.removeprefix("backbone.denoiser.")) in released:
            assert float((value - released[plain]).abs().max()) < 1e-4, key
        if "lora_B" in key or key.endswith("ffn.net.2.weight"):
            assert not torch.equal(value, resumed["current_model_state"][key]), key
            assert not torch.equal(value, saved["state_dict"][key]), key
    events = next(Path(places[0]).glob("events*")).read_bytes()
    plan = "policy" if recipe.endswith("one_step") else "joint"
    assert f"val/{plan}/position_mm".encode() in events
    assert b"train/gradient_norm" in events


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstart", ["--data.train=data/train", "--data.val=data/train"]),
        ("quickstart_diffusion_policy", ["--data.train=data/train", "--data.val=data/train"]),
        ("quickstart_labeling", ["--data.train=data/train", "--data.val=data/train"]),
        # The mixture of data sets, and its clip.
        (
            "quickstart_joint",
            [
                *("--data=configs/data/mixture.yaml", "--data.epoch_size=16"),
                *("--model.clip.views=[front,side,wrist]", "--trainer.precision=bf16-mixed"),
            ],
        ),
    ],
)
def test_a_quickstart_trains_validates_saves_and_resumes(
    name: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    file = f"runs/{name}/fit/checkpoints/last.ckpt"
    words = [*words, "--data.workers=1", "--data.batch_size=2", "--model.clip.size=[32,32]"]
    run(name, [*short(name, STEPS), *words], monkeypatch)
    saved = read(file)
    run(name, [*short(name, 2 * STEPS), *words, f"--ckpt_path={file}"], monkeypatch)
    resumed = read(file)
    assert (saved["global_step"], resumed["global_step"]) == (STEPS, 2 * STEPS)
    for key, value in saved["state_dict"].items():
        assert not torch.equal(value, resumed["state_dict"][key]), key
