import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.report import rollout_picture
from benchmarks.report.rollout_picture import demonstration, encode_webp, frames_with_actions

SIZE, VIEWS = 48, ("front", "wrist")


@pytest.fixture(scope="module")
def episode():
    return demonstration("reach_target", VIEWS, SIZE, hz=5.0)


@pytest.fixture(scope="module")
def sheet(episode):
    return frames_with_actions(episode)


def test_the_first_column_is_what_the_cameras_saw(episode, sheet):
    frames = list(episode.frames)
    assert sheet.shape == (len(frames), 2 * SIZE, 3 * SIZE, 3)
    for row, view in enumerate(VIEWS):
        seen = np.stack([frame.views[view].image for frame in frames])
        assert (sheet[:, row * SIZE : (row + 1) * SIZE, :SIZE] == seen).all()


def test_red_is_brightest_where_the_tool_centre_point_is_projected(episode, sheet):
    for time, frame in enumerate(episode.frames):
        view = frame.views["front"]
        point = np.linalg.inv(view.world_from_camera) @ [*frame.action[:3], 1]
        column, row, depth = view.intrinsics @ point[:3]
        red = sheet[time, :SIZE, SIZE : 2 * SIZE, 0]
        found = np.unravel_index(red.argmax(), red.shape)
        assert np.abs(np.array(found) + 0.5 - [row / depth, column / depth]).max() < 1


def test_the_command_writes_an_animation_that_repeats_and_rests_at_its_end(
    tmp_path, monkeypatch, episode, sheet
):
    out = tmp_path / "picture.webp"
    words = ["rollout_picture", str(out), "--task", "reach_target", "--size", str(SIZE), "--views", *VIEWS]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(rollout_picture.__file__, run_name="__main__")
    with Image.open(out) as picture:
        assert picture.format == "WEBP"
        assert picture.info["loop"] == 0
        assert picture.size == (3 * SIZE, 2 * SIZE)
        durations = []
        for number in range(picture.n_frames):  # frames that are alike are stored as one
            picture.seek(number)
            picture.load()
            durations.append(picture.info["duration"])
        assert sum(durations) == 100 * 2 * (len(sheet) - 1) + 800  # ten a second; the fixture has five
        assert durations[-1] >= 800
        last = np.asarray(picture.convert("RGB")).astype(float)
    assert np.abs(last - sheet[-1]).mean() < 8  # the compression is lossy


def test_a_picture_too_large_for_a_readme_is_refused(monkeypatch, sheet):
    monkeypatch.setattr(rollout_picture, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"bytes of at most 1000; lower --size"):
        encode_webp(sheet, 5.0)
