"""From a simulator's frames to a policy's input, and the checks at that door."""

import numpy as np
import pytest
import torch

from ai_wam.episodes import Episode, Frame, View
from ai_wam.types import Clip, Observation
from ai_wam.utils.seeds import named_generator, stable_seed

CLIP = Clip(frames=9, stride=4, control_hz=20.0, size=(32, 48), views=("front", "wrist"))
POSE = np.array([0.3, 0.0, 1.0, 0, 0, 0, 1, 1])


def view(level: int, height: int = 64, width: int = 96) -> View:
    k = np.array([[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]])
    return View(np.full((height, width, 3), level, np.uint8), k, np.eye(4))


def frame(**views: View) -> Frame:
    return Frame(views=views, action=POSE, seconds=0.25)


def test_frames_become_one_observation():
    frames = [frame(front=view(0), wrist=view(255)), frame(wrist=view(51, 100, 96), front=view(255))]
    seen = Observation.from_frames(frames, ["a", "b"], ["x", "y"], CLIP)
    assert seen.video.shape == (2, 2, 3, 1, 32, 48)
    assert seen.video[0, 0].unique().tolist() == [-1.0]
    torch.testing.assert_close(seen.video[0, 1], torch.ones(3, 1, 32, 48))
    assert seen.video[1, 1].mean() == pytest.approx(51 / 127.5 - 1, abs=1e-6)
    assert seen.view_mask.all()
    assert seen.cameras.shape == (2, 2, 1)
    assert seen.cameras.intrinsics[0, 0, 0].tolist() == [[50, 0, 24], [0, 50, 16], [0, 0, 1]]
    assert seen.cameras.intrinsics[1, 1, 0].tolist() == [
        [50, 0, 24],
        [0, 50, 16],
        [0, 0, 1],
    ]  # cropped, halved
    assert seen.seconds.tolist() == [0.25, 0.25]
    assert (seen.prompts, seen.episodes) == (("a", "b"), ("x", "y"))
    torch.testing.assert_close(seen.action[1].double(), torch.from_numpy(POSE), atol=1e-6, rtol=0)


def test_one_text_is_no_phrasings():
    episode = object.__new__(Episode)  # the tests' check of types would refuse it first
    vars(episode).update(key="one", instructions="reach")
    with pytest.raises(TypeError, match=r"phrasings, a tuple of texts; got the text 'reach': give"):
        episode.__post_init__()


def test_missing_views_are_masked():
    seen = Observation.from_frames([frame(wrist=view(200))], [""], ["x"], CLIP)
    assert seen.view_mask.tolist() == [[False, True]]
    assert (seen.video[0, 0] == 0).all()


@pytest.mark.parametrize(
    "bad", [frame(side=view(0)), Frame(views={"front": view(0)}, action=None, seconds=0.0)]
)
def test_a_frame_without_views_or_pose_is_refused(bad: Frame):
    with pytest.raises(
        ValueError, match=r"views \['front', 'wrist'\] needs at least one of them and the current"
    ):
        Observation.from_frames([bad], [""], ["x"], CLIP)


@pytest.mark.parametrize(
    "bad", [{"frames": 1}, {"stride": 0}, {"control_hz": 0.0}, {"size": (0, 4)}, {"views": ()}]
)
def test_impossible_clips_are_refused(bad: dict):
    with pytest.raises(ValueError, match="frames must be >= 2, stride >= 1"):
        Clip(**bad)


def test_moving_takes_every_tensor_along():
    seen = Observation.from_frames([frame(front=view(0))], ["go"], ["x"], CLIP)
    moved = seen.to("meta")
    tensors = (moved.video, moved.view_mask, moved.action, moved.seconds, moved.cameras.world_from_camera)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.prompts == ("go",)


def test_seeds_follow_from_names_alone():
    assert stable_seed("a", 1) == 6962120981034877120  # on every machine
    assert len({stable_seed("a", 1), stable_seed("a", 2), stable_seed("a1"), stable_seed("a1", "")}) == 4
    first, again = (torch.rand(3, generator=named_generator("episode", 0.5)) for _ in range(2))
    assert torch.equal(first, again)
