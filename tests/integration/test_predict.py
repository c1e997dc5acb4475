"""`ai-wam predict` on two pictures with a camera file: what is written, and what is refused."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ai_wam.cli import main
from ai_wam.episodes import Frame
from ai_wam.video import decode_frames
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards

VIEWS = ("front", "left_shoulder")
SQUARES = MovingSquares(episodes=2, frames=40, size=(96, 128), hz=20.0, views=VIEWS)
SHORT = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=1"]
SHORT += ["--data.batch_size=1", "--data.workers=0", "--model.sampling.steps=1"]
JOINT = ["--model=tasks.joint.JointGeneration", "--data.decode=all"]


def run(patch: pytest.MonkeyPatch, *words: str) -> None:
    patch.setattr(sys, "argv", ["ai-wam", *words])
    main()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fitted models, two pictures and their camera file."""
    folder = tmp_path_factory.mktemp("predict")
    write_shards(SQUARES, folder / "data", workers=0, progress=False)
    frame = next(iter(SQUARES[0].frames))
    cameras = {}
    for view, each in frame.views.items():
        Image.fromarray(each.image).save(folder / f"{view}.png")
        pose = each.world_from_camera.tolist()
        cameras[view] = {"K": each.intrinsics.tolist(), "size": [96, 128], "camera_to_world": pose}
    (folder / "cameras.json").write_text(json.dumps(cameras))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in (("policy", []), ("joint", JOINT)):
            words = ["--data.train=data", "--data.val=data", f"--trainer.logger.init_args.save_dir={name}"]
            run(patch, "fit", "--config", "configs/quickstart.yaml", *SHORT, *words, *more)
    return folder


def predict(patch: pytest.MonkeyPatch, checkpoint: str, *words: str) -> None:
    action = next(iter(SQUARES[0].frames)).action
    given = [f"--data.images.{view}={view}.png" for view in VIEWS]
    given += ["--data.cameras=cameras.json", "--data.prompt=follow the square", "--trainer.logger=false"]
    given += [f"--data.pose={action.tolist()}", "--trainer.accelerator=cpu"]
    file = f"--ckpt_path={checkpoint}/fit/checkpoints/last.ckpt"
    run(patch, "predict", file, "--data=configs/data/images.yaml", *given, *words)


def test_a_folder_per_sample_is_written(place: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """One step of training gives no action; the videos are there to see why, and the end says so."""
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit, match="no action of mine-0, mine-1 is valid") as stop:
        predict(monkeypatch, "joint", "--data.prompt=[follow it, leave it]", "--data.name=mine")
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert f"{place / 'predictions' / 'mine-1'}: 0 of 8 actions are valid (" in said
    assert f"{place / 'predictions' / 'rank0-batch*.npz'}: 2 samples, 0 of 16 actions are valid" in said
    for folder, prompt in (("mine-0", "follow it"), ("mine-1", "leave it")):
        check_folder(place / "predictions" / folder, prompt, generated=True)
    assert not list(place.glob("predictions/**/*.partial"))


def test_a_policy_generates_no_observation(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit, match="no action of input is valid"):
        predict(monkeypatch, "policy")
    check_folder(place / "predictions" / "input", "follow the square", generated=False)


def check_folder(folder: Path, prompt: str, generated: bool) -> None:
    videos = {"action_images.mp4", "overlay.mp4"} | ({"observation.mp4"} if generated else set())
    assert {file.name for file in folder.iterdir()} == videos | {
        "actions.csv",
        "actions.npz",
        "trajectory.png",
    }
    for name in videos:
        assert decode_frames((folder / name).read_bytes()).shape == (9, 384, 768, 3)
    with Image.open(folder / "trajectory.png") as picture:
        assert min(picture.size) > 400
    with np.load(folder / "actions.npz") as file:
        saved = dict(file)
    rows = list(csv.reader((folder / "actions.csv").read_text().splitlines()))
    assert ",".join(rows[0]) == "t_s,x_m,y_m,z_m,qx,qy,qz,qw,openness,valid,confidence"
    np.testing.assert_allclose(saved["seconds"], np.arange(9) * 0.2)
    table = np.array(rows[1:], dtype=float)
    np.testing.assert_allclose(table[:, 0], saved["seconds"])
    np.testing.assert_allclose(table[:, 1:9], saved["actions"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(table[:, 9], saved["valid"])
    np.testing.assert_allclose(saved["actions"][0], first_frame().action, atol=1e-6)
    assert saved["confidence"][0] == 1
    assert str(saved["prompt"]) == prompt
    assert saved["views"].tolist() == list(VIEWS)
    poses = [first_frame().views[view].world_from_camera for view in VIEWS]
    np.testing.assert_allclose(saved["world_from_camera"], poses, atol=1e-6)


def first_frame() -> Frame:
    return next(iter(SQUARES[0].frames))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=tasks.joint.JointGeneration"], r"trained on the plans \['policy'\], not on 'joint'"),
        (["--model.backbone.init_args.codec.init_args.gain=0.5"], "the weights of another backbone"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit, match=message):
        predict(monkeypatch, "policy", *words)


def test_wrong_input_is_an_error_before_the_model_runs(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("tasks.base.WorldActionTask.predict_step", None)
    with pytest.raises(
        SystemExit, match=r"images are given for views \['top'\], which the model does not have"
    ):
        predict(monkeypatch, "policy", "--data.images.top=front.png")
    with pytest.raises(SystemExit, match=r"no image 'nowhere\.png'"):
        predict(monkeypatch, "policy", "--data.images.front=nowhere.png")
