"""What is written of one sample: numbers, videos and the picture of a path that is known."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from ai_wam.action_images import ActionImageTokenizer, DecodeStatus
from ai_wam.cameras import Cameras
from ai_wam.types import ActionChunk, Batch
from ai_wam.video import decode_frames
from tasks.evaluation.prediction_writer import ActionWriter, SampleWriter, sample_files, validity

SIZE, STEPS = (128, 128), 5
POSES = torch.tensor(
    [
        [[0, 0.6, -0.8, 1.2], [1, 0, 0, 0], [0, -0.8, -0.6, 1.5], [0, 0, 0, 1]],
        [[1, 0, 0, 0.3], [0, -1, 0, 0], [0, 0, -1, 2.0], [0, 0, 0, 1]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ],
    dtype=torch.float32,
)


def sample(generated: bool, lost: bool = False) -> tuple[Batch, ActionChunk]:
    """A path along x that turns and closes, seen by two views; the third one is missing."""
    time = torch.linspace(0, 1, STEPS)
    turn = 0.4 * time
    zero = torch.zeros(STEPS)
    actions = torch.stack(
        [0.2 + 0.2 * time, 0.1 * time, 0.8 + 0.1 * time**2, turn.cos(), turn.sin(), zero, zero, 1 - time],
        dim=1,
    )
    k = torch.tensor([[150.0, 0, 64], [0, 150, 64], [0, 0, 1]])
    cameras = Cameras(k.expand(1, 3, STEPS, 3, 3), POSES[None, :, None].expand(1, 3, STEPS, 4, 4))
    images = 2 * ActionImageTokenizer().encode(actions[None], cameras, SIZE) - 1
    video = torch.linspace(-0.6, 0.2, SIZE[1]).expand(1, 3, 3, STEPS, *SIZE)
    known = (torch.arange(STEPS) == 0)[None]
    batch = Batch(
        *(video, cameras, torch.tensor([[True, True, False]]), known, known, actions[None], known),
        *(("go",), ("a",)),
    )
    predicted, valid = actions[None, 1:].clone(), torch.ones(1, STEPS - 1, dtype=torch.bool)
    valid[0, 1] = False
    if lost:
        predicted, valid = predicted * torch.nan, valid & False
    videos = {"action_images": images} | ({"observation": video + 0.3} if generated else {})
    return batch, ActionChunk(predicted, valid, valid * 0.9, 0.2, videos)


def test_numbers_are_those_of_the_prediction():
    batch, chunk = sample(generated=False)
    files = sample_files(batch, chunk, 0, ("front", "top", "wrist"))
    header, *rows = csv.reader(files["actions.csv"].decode().splitlines())
    assert header[:4] == ["t_s", "x_m", "y_m", "z_m"]
    table = np.array(rows, dtype=float)
    np.testing.assert_allclose(table[:, 0], [0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(table[:, 1:9], batch.actions[0], atol=1e-5)
    assert table[:, 9].tolist() == [1, 1, 0, 1, 1]
    np.testing.assert_allclose(table[:, 10], [1, 0.9, 0, 0.9, 0.9])
    with np.load(io.BytesIO(files["actions.npz"])) as saved:
        assert saved["views"].tolist() == ["front", "top"]
        np.testing.assert_allclose(saved["world_from_camera"], POSES[:2])
        np.testing.assert_allclose(saved["actions"], batch.actions[0])


def test_the_points_lie_over_the_scene():
    """The tool centre point is red in the overlay of every view; elsewhere one sees the scene."""
    batch, chunk = sample(generated=True)
    files = sample_files(batch, chunk, 0, ("front", "top", "wrist"))
    assert set(files) >= {"observation.mp4", "action_images.mp4", "overlay.mp4"}
    painted = decode_frames(files["overlay.mp4"])
    assert painted.shape == (STEPS, 384, 768, 3)  # two views, three times enlarged
    seen = batch.cameras[0].project(batch.actions[0, :, None, :3].expand(3, -1, -1, -1), SIZE)
    for view in range(2):
        for step in range(STEPS):
            x, y = (3 * seen.pixels[view, step, 0]).round().int().tolist()
            red, green, _ = painted[step, y, x + 384 * view].astype(int)  # from above, blue lies below red
            assert red > 200
            assert red > green + 40
    scene = decode_frames(files["observation.mp4"])
    np.testing.assert_allclose(painted[:, :30, :30].astype(int), scene[:, :30, :30].astype(int), atol=12)


def test_without_a_generated_observation_the_present_picture_is_held():
    batch, chunk = sample(generated=False)
    files = sample_files(batch, chunk, 0, ("front", "top", "wrist"))
    assert "observation.mp4" not in files
    painted = decode_frames(files["overlay.mp4"])
    assert np.ptp(painted[:, :30, :30].astype(int), axis=0).max() <= 6


def test_the_path_is_drawn_even_if_no_step_was_measured():
    pictures = []
    for lost in (False, True):
        png = sample_files(*sample(generated=False, lost=lost), 0, ("front", "top", "wrist"))[
            "trajectory.png"
        ]
        with Image.open(io.BytesIO(png)) as picture:
            pictures.append(np.array(picture.convert("RGB")))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != 255).any()


def test_the_end_says_where_files_lie_and_how_many_actions_are_valid(tmp_path: Path, capsys):
    task, trainer, writer = (
        LightningModule(),
        Trainer(logger=False, accelerator="cpu"),
        SampleWriter(tmp_path),
    )
    task.clip = SimpleNamespace(views=("front", "top", "wrist"))
    batch, chunk = sample(generated=False)
    chunk = replace(chunk, status=torch.where(chunk.valid, DecodeStatus.OK, DecodeStatus.OFFSCREEN).int())
    writer.write_on_batch_end(trainer, task, chunk, None, batch, 0, 0)
    writer.on_predict_epoch_end(trainer, task)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'a'}: 3 of 4 actions are valid (1 with a point that fewer than two views show)\n"
    )
    batch, lost = sample(generated=False, lost=True)
    lost = replace(lost, status=torch.full_like(lost.valid, DecodeStatus.DEGENERATE, dtype=torch.int))
    assert validity(lost, 0).endswith("(4 with fewer than two views, or views too close together)")
    writer.write_on_batch_end(trainer, task, lost, None, batch, 0, 0)
    with pytest.raises(RuntimeError, match="no action of a is valid"):
        writer.on_predict_epoch_end(trainer, task)


def test_nothing_of_an_earlier_run_stays_beside_the_new_one(tmp_path: Path):
    """A plan that generates no observation left the video of another plan there."""
    task, trainer = LightningModule(), Trainer(logger=False, accelerator="cpu")
    task.clip = SimpleNamespace(views=("front", "top", "wrist"))
    for generated in (True, False):
        batch, chunk = sample(generated)
        SampleWriter(tmp_path).write_on_batch_end(trainer, task, chunk, None, batch, 0, 0)
        assert (tmp_path / "a" / "observation.mp4").exists() == generated
    for batches in (3, 1):
        writer = ActionWriter(tmp_path)
        writer.on_predict_start(trainer, task)
        for number in range(batches):
            writer.write_on_batch_end(trainer, task, chunk, None, batch, number, 0)
        assert len(list(tmp_path.glob("*.npz"))) == batches
