"""`ai-wam` from the command line: every YAML parses, tiny ones are fitted and tested, precedence holds."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from ai_wam.cli import main
from ai_wam.cli.collect import collect
from ai_wam.cli.shipped_configs import config_path, instantiate
from backbones.base import VideoBackbone
from benchmarks.evaluation.sweep import read_points
from benchmarks.shifts import Shift

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = sorted(file.stem for file in (CONFIGS / "backbone").glob("*-tiny.yaml"))
SHORT = [
    *("--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.limit_val_batches=1"),
    *("--data.batch_size=2", "--data.workers=0", "--model.sampling.steps=1"),
]

OLD = "fit/fit/checkpoints/last.ckpt"
ONE_STEP = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ai-wam", *words])
    main()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of a few demonstrations and one fitted policy."""
    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--source.init_args.episodes_per_task=8", "--episodes_per_shard=4", "--workers=0"]
        run(patch, "collect", "--config", "configs/collect/reach_target.yaml", "--out=data", *words)
        fit(patch, "fit")
    return folder


def fit(patch: pytest.MonkeyPatch, name: str, *more: str) -> None:
    folders = ["--data.train=data", "--data.val=data", f"--trainer.logger.init_args.save_dir={name}"]
    run(patch, "fit", "--config", "configs/quickstart.yaml", *SHORT, *folders, *more)


def one_trial(patch: pytest.MonkeyPatch, out: str, *words: str, trials: int = 1) -> dict:
    few = f"--data.benchmark.init_args.protocol.trials_per_task={trials}"
    run(patch, "test", "--data", "configs/benchmark/reach_target.yaml", few, f"--data.out={out}", *words)
    return json.loads((Path(out) / "results.json").read_text())


@pytest.mark.parametrize("name", sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml")))
def test_every_yaml_parses(name: str, monkeypatch: pytest.MonkeyPatch):
    """Against the signatures it is for; models and trainers are parsed, not built."""
    file = CONFIGS / name
    parser = ArgumentParser(exit_on_error=False)
    content = yaml.safe_load(file.read_text())
    if file.parent.name in ("collect", "convert"):
        parser.add_function_arguments(collect, sub_configs=True)
        parser.parse_args([f"--{key}={json.dumps(value)}" for key, value in content.items()])
    elif file.parent.name == "shift":
        assert parsed_shift(str(file)).parts
    elif file.parent.name == "sweep":
        for point in read_points(file):
            assert point.shift is None or parsed_shift(config_path(str(point.shift))).parts
    elif file.parent.name == "logger":
        words = ["--config", "configs/quickstart.yaml", "--trainer.logger", str(file), "--print_config"]
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, "fit", *words)
        assert stop.value.code == 0
    elif file.parent.name in ("backbone", "data", "benchmark"):
        kind = VideoBackbone if file.parent.name == "backbone" else LightningDataModule
        parser.add_subclass_arguments(kind, "object", skip={"clip"})
        parser.parse_args([f"--object={file}"])
    else:
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, "fit", "--config", str(file), "--print_config")
        assert stop.value.code == 0


def test_a_printed_configuration_is_one_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    file = tmp_path / "run.yaml"
    for words in (["configs/quickstart.yaml", "--data.batch_size=3"], [str(file)]):
        with pytest.raises(SystemExit):
            run(monkeypatch, "fit", "--config", *words, "--print_config")
        before = file.read_text() if file.exists() else None
        file.write_text(capsys.readouterr().out)
    assert file.read_text() == before
    assert yaml.safe_load(before)["data"]["init_args"]["batch_size"] == 3


def parsed_shift(file: str | Path) -> Shift:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--shift", type=Shift)
    return parser.instantiate_classes(parser.parse_args([f"--shift={file}"])).shift


def test_fit_leaves_a_checkpoint_and_videos(place: Path):
    saved = torch.load(place / "fit" / "fit" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["_class_path"] == "tasks.policy.PolicyControl"
    assert saved["global_step"] == 3
    assert saved["optimizer_states"]
    events = next((place / "fit" / "fit").glob("events*")).read_bytes()
    assert b"samples/policy/0" in events
    assert b"GIF89a" in events
    assert b"val/policy/position_mm" in events


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("task", ["tasks.policy.PolicyControl", "tasks.joint.JointGeneration"])
def test_every_tiny_backbone_fits_every_task(
    place: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, task: str
):
    """One step and one validation; several steps are compared in tests/contract/test_backbone_weights.py."""
    monkeypatch.chdir(place)
    name = f"{backbone}-{task.rpartition('.')[2]}"
    decode = "--data.decode=all" if "joint" in task else "--data.decode=first"
    precision = "bf16-mixed" if "joint" in task else "32-true"
    words = [f"--model={task}", f"--model.backbone=configs/backbone/{backbone}.yaml", decode]
    small = ["--model.clip.size=[32, 32]", "--data.batch_size=1"]
    fit(monkeypatch, name, *words, f"--trainer.precision={precision}", *ONE_STEP, *small)
    assert (place / name / "fit" / "checkpoints" / "last.ckpt").is_file()


@pytest.fixture(scope="module")
def tested(place: Path) -> dict:
    """Results of trials of the fitted policy, as it was saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return one_trial(patch, "tested", "--ckpt_path=fit/fit/checkpoints/last.ckpt", trials=2)


def test_test_runs_trials_and_reports(place: Path, tested: dict):
    task = tested["tasks"]["reach_target"]
    assert task["policy"]["trials"] == task["ceiling"]["trials"] == task["floor"]["trials"] == 2
    assert task["ceiling"]["successes"] == 2
    assert task["floor"]["successes"] == 0
    assert "<video" in (place / "tested" / "report.html").read_text()


def test_a_sweep_tests_the_points_in_their_scenes(place: Path, tested: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    shift = "{cameras: {azimuth: [45, 45]}, sensor: {noise: [5, 5]}}"
    Path("points.yaml").write_text(f"points:\n  - {{name: none}}\n  - {{name: moved, shift: {shift}}}\n")
    words = ["--points=points.yaml", "--out=sweep", "--data=configs/benchmark/reach_target.yaml"]
    words += ["--data.benchmark.init_args.protocol.trials_per_task=2", f"--ckpt_path={OLD}"]
    run(monkeypatch, "sweep", *words)
    found = json.loads(Path("sweep/sweep.json").read_text())
    usual, moved = (json.loads(Path(f"sweep/{name}/results.json").read_text()) for name in ("none", "moved"))
    assert usual["protocol_hash"] == tested["protocol_hash"]
    assert usual["trials"] == tested["trials"]
    assert moved["trials"][0]["shift"].keys() == {"cameras", "sensor"}
    assert moved["trials"][0]["policy"] != tested["trials"][0]["policy"]
    assert [point["mean"]["ceiling"] for point in found["results"]] == [1.0, 1.0]
    assert Path("sweep/sweep.html").read_text().count("data:image/png;base64") == 2


def test_an_exported_checkpoint_acts_as_before(place: Path, tested: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    checkpoint = "--ckpt_path=fit/fit/checkpoints/last.ckpt"
    run(monkeypatch, "export-checkpoint", checkpoint, "--out=exported")
    after = one_trial(monkeypatch, "after", "--model=exported/task.yaml", trials=2)
    for one, other in zip(tested["trials"], after["trials"], strict=True):
        assert one["id"] == other["id"]
        assert one["policy"]["diagnostics"] == pytest.approx(other["policy"]["diagnostics"], abs=1e-3)
    fit(monkeypatch, "tuned", "--model.backbone=exported/backbone.yaml", *ONE_STEP)
    assert (place / "tuned" / "fit" / "checkpoints" / "last.ckpt").is_file()


def evaluate_clips(patch: pytest.MonkeyPatch, command: str, *words: str) -> None:
    shards = ["--data=configs/data/shards.yaml", "--data.train=data", "--data.val=data", "--data.workers=0"]
    file = "--ckpt_path=fit/fit/checkpoints/last.ckpt"
    run(patch, command, file, *shards, "--trainer.logger=false", *words)


def test_recorded_episodes_are_evaluated(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(place)
    evaluate_clips(monkeypatch, "validate")
    assert "val/policy/position_mm" in capsys.readouterr().out


MIXTURE = ["joint", "labeling", "action_conditioned"]


@pytest.fixture(scope="module")
def joint(place: Path) -> str:
    """A checkpoint of a mixture, in the same folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        plans = "--model.plans=" + json.dumps(dict.fromkeys(MIXTURE, 1.0))
        fit(patch, "mixed", "--model=tasks.joint.JointGeneration", "--data.decode=all", plans, *ONE_STEP)
    return "--ckpt_path=mixed/fit/checkpoints/last.ckpt"


def judge_plans(patch: pytest.MonkeyPatch, checkpoint: str, *words: str) -> dict:
    """metrics.json of a test on recorded clips."""
    shards = ["--data=configs/data/shards.yaml", "--data.test=data", "--data.workers=0"]
    few = ["--model.sampling.steps=1", "--data.batch_size=4", "--trainer.limit_test_batches=1"]
    run(patch, "test", checkpoint, *shards, *few, "--trainer.logger=false", *words)
    return json.loads(Path("metrics.json").read_text())


def test_recorded_clips_are_evaluated_plan_by_plan(
    place: Path,
    joint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.chdir(place)
    found = judge_plans(monkeypatch, joint)
    arms = {name: plan["arms"] for name, plan in found["plans"].items()}
    assert list(arms) == MIXTURE
    assert all(plan["clips"] == 4 for plan in found["plans"].values())
    assert list(arms["joint"]) == ["model", "copy_first_frame", "hold_still", "codec"]
    assert arms["joint"]["model"].keys() >= {"psnr", "ssim", "valid"}
    assert arms["joint"]["codec"].keys() >= {"position_px", "position_mm_median", "gripper_accuracy"}
    assert arms["labeling"]["model"].keys() >= {"average_jaccard", "jaccard_4", "trajectory_error"}
    assert set(arms["action_conditioned"]["model"]) == {"psnr", "ssim"}
    assert arms["joint"]["codec"]["psnr"] > arms["joint"]["copy_first_frame"]["psnr"]
    assert arms["labeling"]["hold_still"]["valid"] == arms["labeling"]["model"]["valid"]
    assert arms["labeling"]["codec"]["position_mm"] < 10
    assert arms["labeling"]["codec"]["average_jaccard"] > arms["labeling"]["hold_still"]["average_jaccard"]
    assert set(found["left_out"]) == {"lpips", "fvd"}
    assert found["config"]["sampling"]["steps"] == 1
    assert "test/joint/codec/psnr" in capsys.readouterr().out  # Lightning's own table
    assert "lpips is left out: no network given" in caplog.text


def test_the_baseline_is_fitted_evaluated_on_clips_and_acts(place: Path, monkeypatch: pytest.MonkeyPatch):
    """By the same commands as a world action model; those that need a backbone refuse it."""
    monkeypatch.chdir(place)
    folders = ["--data.train=data", "--data.val=data", "--trainer.logger.init_args.save_dir=numbers"]
    run(monkeypatch, "fit", "--config", "configs/quickstart_diffusion_policy.yaml", *SHORT, *folders)
    checkpoint = "--ckpt_path=numbers/fit/checkpoints/last.ckpt"
    found = judge_plans(monkeypatch, checkpoint)["plans"]["policy"]
    assert found["clips"] == 4
    assert set(found["arms"]) == {"model", "hold_still"}
    assert found["arms"]["model"]["valid"] == 1
    results = one_trial(monkeypatch, "numbers/test", checkpoint)
    assert results["tasks"]["reach_target"]["ceiling"]["rate"] == 1
    assert results["policy"]["name"] == "tasks.diffusion_policy.DiffusionPolicy"
    with pytest.raises(SystemExit, match="has no backbone to write"):
        run(monkeypatch, "export-checkpoint", checkpoint, "--out=numbers/weights")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--data.decode=first", r"'joint' needs all frames.*set `decode: all`"),
        ("--data.test=null", r"evaluates on the shards that data\.test names"),
        ("--model.evaluation.networks={lpips_alex: alex.pth}", r"lpips_alex is to be read from 'alex\.pth'"),
        (
            "--model.evaluation.plans=[policy]",
            r"\['joint', 'labeling', 'action_conditioned'\], not on 'policy'",
        ),
    ],
)
def test_what_a_test_on_clips_needs_is_said(
    place: Path, joint: str, monkeypatch: pytest.MonkeyPatch, word: str, message: str
):
    """In one sentence, without a traceback."""
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit, match=f"^ai-wam.*{message}"):
        judge_plans(monkeypatch, joint, word)


def test_plans_never_trained_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    other = "--model=tasks.joint.JointGeneration"
    with pytest.raises(SystemExit, match=r"trained on the plans \['policy'\], not on 'joint'"):
        one_trial(monkeypatch, "refused", f"--ckpt_path={OLD}", other)
    with pytest.raises(SystemExit, match=r"trained on the plans \['policy'\], not on 'joint'"):
        evaluate_clips(monkeypatch, "validate", other)


def test_a_labeling_checkpoint_does_not_act(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    fit(monkeypatch, "labels", "--model=tasks.labeling.ActionLabeling", "--data.decode=all", *ONE_STEP)
    with pytest.raises(SystemExit, match=r"\['labeling', 'annotation'\], not on 'policy'.*`ai-wam label`"):
        one_trial(monkeypatch, "refused", "--ckpt_path=labels/fit/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("command", "model"),
    [
        *(
            (each, ["tasks.policy.PolicyControl", "--model.backbone=configs/backbone/wan-tiny.yaml"])
            for each in ("test", "predict", "validate")
        ),
        ("test", ["tasks.diffusion_policy.DiffusionPolicy"]),
    ],
)
def test_random_weights_answer_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str, model: list[str]
):
    monkeypatch.chdir(place)
    model = [f"--model={model[0]}", *model[1:]]
    shards = ["--data=configs/data/shards.yaml", "--data.train=data", "--data.val=data", "--data.test=data"]
    with pytest.raises(SystemExit, match=f"ai-wam {command}: there is no --ckpt_path.*random"):
        run(monkeypatch, command, *model, *shards)


def test_guidance_needs_a_model_that_knows_no_prompt(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit, match=r"guidance is 2\.0.*prompt_dropout 0 and has never seen"):
        one_trial(monkeypatch, "refused", f"--ckpt_path={OLD}", "--model.sampling.guidance=2")


def test_the_shipped_recipe_of_a_head_takes_clip_and_plans_of_the_checkpoint(
    place: Path, joint: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    words = [joint.replace("ckpt_path", "weights"), "--data.train=data", "--data.val=data"]
    with pytest.warns(UserWarning, match="the weights hold no action head"):
        run(monkeypatch, "fit", "--config", "configs/quickstart_head.yaml", *words, *SHORT)
    saved = torch.load("runs/quickstart_head/fit/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert list(saved["hyper_parameters"]["plans"]) == MIXTURE
    assert saved["hyper_parameters"]["clip"]["frames"] == 9


def test_a_head_is_put_on_trained_weights_and_taken_off(
    place: Path, tested: dict, monkeypatch: pytest.MonkeyPatch
):
    """Batches of one row, half of which train no action: a head on a frozen backbone must bear them."""
    monkeypatch.chdir(place)
    head = "--model.action_head=tasks.decoding.action_head.ActionHead"
    frozen = ["--model.freeze_backbone=true", "--data.batch_size=1", "--data.decode=all"]
    plans = "--model.plans=" + json.dumps({"policy": 0.5, "video_only": 0.5})
    with pytest.raises(SystemExit, match=f"action_head off.*--weights {OLD} instead"):
        fit(monkeypatch, "resumed", f"--ckpt_path={OLD}", head)
    with pytest.warns(UserWarning, match="the weights hold no action head"):
        fit(monkeypatch, "headed", f"--weights={OLD}", head, plans, *frozen)
    made = torch.load("headed/fit/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("action_head.") for name in made)
    for name, value in torch.load(OLD, weights_only=True)["state_dict"].items():
        assert torch.equal(made[name], value)
    file, bare = "--ckpt_path=headed/fit/checkpoints/last.ckpt", ["--model.freeze_backbone=false"]
    assert one_trial(monkeypatch, "with_head", file)["policy"]["config"]["action_head"] is not None
    found = one_trial(monkeypatch, "without_head", file, *bare, "--model.action_head=null", trials=2)
    for one, other in zip(found["trials"], tested["trials"], strict=True):
        assert one["policy"]["diagnostics"] == other["policy"]["diagnostics"]
    with pytest.raises(SystemExit, match="begins a new run"):
        one_trial(monkeypatch, "refused", f"--weights={OLD}")


def test_predictions_are_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    evaluate_clips(monkeypatch, "predict")
    with np.load(place / "predictions" / "rank0-batch00000.npz") as file:
        saved = dict(file)
    assert saved["actions"].shape == (len(saved["keys"]), 8, 8)
    assert saved["valid"].shape == saved["confidence"].shape == (len(saved["keys"]), 8)
    assert float(saved["dt"]) == pytest.approx(0.2)


@pytest.mark.parametrize("spelling", ["--ckpt_path=last.ckpt", "--config=named.yaml"])
def test_a_checkpoint_is_known_by_any_name(place: Path, monkeypatch: pytest.MonkeyPatch, spelling: str):
    """`last` alone is a keyword of Lightning's, `last.ckpt` a file; a YAML may name it too."""
    (place / "named.yaml").write_text("ckpt_path: fit/fit/checkpoints/last.ckpt\n")
    monkeypatch.chdir(place / "fit" / "fit" / "checkpoints" if "last" in spelling else place)
    other = "--model.backbone=configs/backbone/cogvideox-tiny.yaml"
    with pytest.raises(SystemExit, match="holds the weights of another backbone"):
        one_trial(monkeypatch, "refused", spelling, "--model=tasks.policy.PolicyControl", other)


def test_the_command_line_wins_over_the_checkpoint(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    words = ["--ckpt_path=fit/fit/checkpoints/last.ckpt", "--model.sampling.steps=2"]
    found = one_trial(monkeypatch, "stepped", *words)
    assert found["policy"]["config"]["sampling"]["steps"] == 2
    assert (
        found["policy"]["config"]["optimizer"]["init_args"]["lr"] == 8e-3
    )  # settings that are not overridden are the checkpoint's


def test_another_head_takes_the_same_weights(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    words = ["--ckpt_path=fit/fit/checkpoints/last.ckpt", "--model=tasks.joint.JointGeneration"]
    found = one_trial(monkeypatch, "swapped", *words, "--model.control_plan=policy")
    assert found["policy"]["name"] == "tasks.joint.JointGeneration"
    assert found["policy"]["config"]["backbone"]["class_path"] == "backbones.wan.Wan"


@pytest.mark.parametrize(
    "words",
    [
        ["--model.backbone=configs/backbone/cogvideox-tiny.yaml"],
        ["--model.backbone.init_args.codec.init_args.gain=0.5"],  # all shapes agree, the function does not
    ],
)
def test_weights_of_another_backbone_are_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit, match="holds the weights of another backbone"):
        one_trial(monkeypatch, "refused", "--ckpt_path=fit/fit/checkpoints/last.ckpt", *words)


def test_a_missing_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match=r"no checkpoint 'nowhere\.ckpt'"):
        one_trial(monkeypatch, "refused", "--ckpt_path=nowhere.ckpt")


def test_unknown_commands_list_the_known_ones(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match=r"unknown command 'trian'[\s\S]*quickstart"):
        run(monkeypatch, "trian")
    run(monkeypatch, "--help")
    assert "closed-loop trials" in capsys.readouterr().out


def test_shipped_objects_load_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("configs/quickstart.yaml").is_file()
    backbone = instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)
    assert backbone.spec.channels == 72
    assert not os.listdir(tmp_path)
