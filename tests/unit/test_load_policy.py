"""`load_policy` acts as `ai-wam test` does."""

import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from serving_thread import stacked

from ai_wam.cli import main
from ai_wam.cli.load_policy import LoadedPolicy, load_policy
from ai_wam.cli.view_inputs import scenes_of
from ai_wam.errors import UserError
from ai_wam.files.packed_policy import unpack
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop.simulator import Tabletop


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy that comes with the package."""
    file = tmp_path_factory.mktemp("policy") / "last.ckpt"
    unpack(Path(str(files("ai_wam.demo"))) / "policy.safetensors", file)
    return file


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> LoadedPolicy:
    return load_policy(str(checkpoint))


def seen(trial: Trial) -> dict:
    """What a robot has at the beginning of a trial."""
    world = Tabletop(rig="framed", image_size=(64, 64))
    instructions = world.reset(trial)
    frame = world.observe(("front", "left_shoulder"))
    world.close()
    images = {name: each.image for name, each in frame.views.items()}
    return {
        "images": images,
        "cameras": stacked(frame.views.values()),
        "instruction": instructions[trial.seed % len(instructions)],
        "pose": frame.action,
    }


def test_the_actions_are_those_of_a_test(checkpoint, policy, monkeypatch, tmp_path):
    words = ["test", f"--ckpt_path={checkpoint}", "--data=configs/benchmark/reach_target.yaml"]
    words += [
        "--data.trials=[test-reach_target-v01-00003]",
        "--data.references=false",
        "--data.explain=false",
    ]
    words += [f"--data.out={tmp_path}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    words += ["--seed_everything=0"]
    monkeypatch.setattr(sys, "argv", ["ai-wam", *words])
    main()
    (carried_out,) = scenes_of(str(tmp_path)).read(0).chunks
    trial = Trial("reach_target", 1, 3)
    chunk = policy.predict_action(**seen(trial), episode=trial.id)
    np.testing.assert_array_equal(chunk.actions[0].double().numpy(), carried_out.actions)
    np.testing.assert_array_equal(chunk.position_std[0].double().numpy(), carried_out.position_std)
    assert chunk.dt == carried_out.dt
    other = policy.predict_action(**seen(trial), episode="another")
    assert not torch.equal(other.actions, chunk.actions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: g["images"].pop("front"),
            r"given for the views \['left_shoulder'\], the model has \['front'",
        ),
        (lambda g: g.update(cameras=g["cameras"][:1]), r"leading dimensions \(1,\), expected \(2,\)"),
        (lambda g: g.update(pose=[0.0] * 7), "pose must be x y z"),
        (lambda g: g["images"].update(front=np.zeros((8, 8, 3), np.uint8)), "principal point of K"),
        (
            lambda g: g.update(pose=[1000 * x for x in g["pose"][:3]] + list(g["pose"][3:])),
            "far outside of every picture .*'front' at pixel",
        ),
        (
            lambda g: g.update(
                cameras=replace(g["cameras"], world_from_camera=g["cameras"].world_from_camera.inverse())
            ),
            "far outside of every picture .* world_from_camera",
        ),
    ],
)
def test_wrong_input_is_named(policy, change, message):
    given = seen(Trial("reach_target", 0, 0))
    change(given)
    with pytest.raises(UserError, match=message):
        policy.predict_action(**given)


def test_pictures_may_be_views_of_others(policy):
    """OpenCV's pictures turned round are arrays with a negative stride; those of files may be read-only."""
    given = seen(Trial("reach_target", 0, 0))
    expected = policy.predict_action(**given, episode="one")
    for name, image in given["images"].items():
        turned = image[..., ::-1].copy()[..., ::-1]
        turned.flags.writeable = False
        given["images"][name] = turned
    assert torch.equal(policy.predict_action(**given, episode="one").actions, expected.actions)


def test_a_plan_it_was_not_trained_on_is_refused(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    saved["hyper_parameters"] |= {"_class_path": "tasks.joint.JointGeneration", "plans": {"joint": 1.0}}
    torch.save(saved, tmp_path / "joint.ckpt")
    assert load_policy(str(tmp_path / "joint.ckpt")).clip.views == ("front", "left_shoulder")
    with pytest.raises(UserError, match=r"trained on the plans \['joint'\], not on 'policy'"):
        load_policy(str(tmp_path / "joint.ckpt"), "control_plan=policy")
