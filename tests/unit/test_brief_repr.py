"""What a notebook shows of objects made of arrays."""

import torch

from ai_wam.cameras import Cameras
from ai_wam.types import ActionChunk, Clip, Observation
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet

SQUARES = MovingSquares(episodes=2, frames=3, size=(32, 48))
POSE = "metres, quaternion x y z w, openness; world frame"


def test_shapes_and_units_instead_of_numbers():
    cameras = Cameras(torch.eye(3).repeat(2, 9, 1, 1), torch.eye(4).repeat(2, 9, 1, 1))
    assert repr(cameras) == (
        "Cameras(intrinsics=float32[2, 9, 3, 3] (pixels), "
        "world_from_camera=float32[2, 9, 4, 4] (metres, OpenCV axes))"
    )
    sure = torch.ones(1, 4)
    chunk = ActionChunk(
        torch.zeros(1, 4, 8), sure.bool(), sure, 0.2, {"action_images": torch.zeros(1, 2, 3, 5, 8, 8)}
    )
    assert repr(chunk) == (
        f"ActionChunk(actions=float32[1, 4, 8] ({POSE}), valid=bool[1, 4], confidence=float32[1, 4], "
        "dt=0.2 (seconds), generated={'action_images': float32[1, 2, 3, 5, 8, 8]}, "
        "position_std=None, status=None)"
    )


def test_frames_observations_and_shards_are_a_line(tmp_path):
    frame = next(iter(SQUARES[0].frames))
    assert "image=uint8[32, 48, 3] (RGB)" in repr(frame)
    assert f"action=float64[8] ({POSE})" in repr(frame)
    seen = repr(Observation.from_frames([frame], ["go"], ["one"], Clip()))
    assert "video=float32[1, 2, 3, 1, 64, 64] (in [-1, 1])" in seen
    assert "prompts=('go')" in seen
    assert len(seen) < 500
    write_shards(SQUARES, tmp_path / "data", workers=0, progress=False)
    shards = ShardSet(tmp_path / "data")
    place = str(tmp_path / "data")
    assert repr(shards) == f"ShardSet({place!r}: 2 episodes, 7 frames, views ['front', 'left_shoulder'])"
    assert "[3, 8], intrinsics={'front': " in repr(shards.header(0))
