import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from source_fixtures import bridge as fixture

from ai_wam.poses import rotation_from_quaternion
from datamodules.reading.rotations import to_quaternion
from datamodules.sources.bridge import Bridge

FIRST = fixture.SESSION / "traj_group0" / "traj2"


@pytest.fixture
def root(tmp_path):
    fixture.write(tmp_path)
    return tmp_path


def test_without_estimated_cameras_they_are_lost(root):
    calibrated, lost = Bridge(str(root))[0], Bridge(str(root))[1]
    assert (calibrated.provenance["calibrated"], lost.provenance["calibrated"]) == (
        ["images0", "images1"],
        [],
    )
    view = next(iter(lost.frames)).views["images1"]
    assert np.isnan(view.intrinsics).all()
    assert np.isnan(view.world_from_camera).all()


def test_the_tool_points_down_where_all_angles_are_zero(root):
    """The tool's x axis runs along the fingers."""
    save(root / FIRST, np.array([[0.3, 0, 0.1, 0, 0, 0, 1.0]] * fixture.FRAMES))
    action = next(iter(Bridge(str(root))[0].frames)).action
    rotation = rotation_from_quaternion(torch.from_numpy(action[3:7])).numpy()
    assert np.allclose(rotation, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)


def test_views_and_stride(root):
    episode = Bridge(str(root), views=["images1"], stride=4)[0]
    frames = list(episode.frames)
    assert episode.hz == 1.25
    assert [list(frame.views) for frame in frames] == [["images1"]] * 2
    assert frames[1].seconds == pytest.approx(0.8)


def test_some_trajectories_have_a_picture_more(root):
    Image.new("RGB", (64, 48)).save(root / FIRST / "images0" / "im_6.jpg")
    with pytest.raises(ValueError, match=r"images0 has 7 pictures, obs_dict.pkl 6 states; .* \(slack: 1\)"):
        Bridge(str(root))[0]
    assert len(list(Bridge(str(root), slack=1)[0].frames)) == 6


def save(folder, states):
    (folder / "obs_dict.pkl").write_bytes(pickle.dumps({"full_state": states}))


def timed(times, states=None):
    states = np.zeros((6, 7)) if states is None else states
    return lambda folder: (folder / "obs_dict.pkl").write_bytes(
        pickle.dumps({"full_state": states, "time_stamp": times})
    )


@pytest.mark.parametrize("times", [None, [0, 0.2, 0.4, 0.6, 0.8, 1.29], [7.0 + 0.3 * i for i in range(6)]])
def test_times_that_are_even_or_unknown_pass(times, root):
    timed(times)(root / FIRST)
    assert len(list(Bridge(str(root))[0].frames)) == 6


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 0.2, 0.4, 1.4, 1.6, 1.8], r"step 3 was taken 1 s after step 2, .* at most 0.5 s .*gaps: true"),
        ([0, 0.2, 0.1, 0.3, 0.5, 0.7], r"step 2 was taken -0.1 s after step 1, expected more than 0"),
        ([0, 0.2, 0.2, 0.4, 0.6, 0.8], "step 2 was taken 0 s after step 1"),
        ([0.05 * i for i in range(6)], "steps follow after 0.05 s, but this source reads 5 steps per"),
        ([0.0, 0.2], r"'time_stamp' has shape \(2,\), expected 6 finite seconds"),
        ([0, 0.2, np.nan, 0.6, 0.8, 1.0], "expected 6 finite seconds"),
        (["now"] * 6, "'time_stamp' holds no numbers"),
    ],
)
def test_gaps_in_time_are_named_and_may_be_accepted(times, message, root):
    timed(times)(root / FIRST)
    with pytest.raises(ValueError, match=message):
        Bridge(str(root))[0]
    assert len(list(Bridge(str(root), gaps=True)[0].frames)) == 6


def cameras(change):
    def apply(folder):
        content = json.loads((folder / "cameras.json").read_text())
        change(content["images1"])
        (folder / "cameras.json").write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: save(f, np.zeros((6, 6))), r"'full_state' has shape \(6, 6\), expected \[t, 7\]"),
        (lambda f: save(f, np.full((6, 7), np.nan)), r"'full_state', frame 0: .* is not finite"),
        (lambda f: save(f, [["a"]]), "'full_state' holds no numbers"),
        (lambda f: save(f, None), r"'full_state' has shape \(\)"),
        (lambda f: (f / "obs_dict.pkl").write_bytes(pickle.dumps(Path("x"))), "asks for the global pathlib"),
        (
            lambda f: (f / "lang.txt").write_bytes("Löffel".encode("latin-1")),
            r"lang.txt is not UTF-8 \(byte 1 is 0xf6\); save it as UTF-8",
        ),
        (lambda f: (f / "images0/im_3.jpg").unlink(), r"images0: picture im_3 is missing"),
        (lambda f: (f / "images0/im_5.jpg").unlink(), r"images0 has 5 pictures, obs_dict.pkl 6 states"),
        (lambda f: (f / "images1/im_5.jpg").write_bytes(b"none"), "im_5.jpg cannot be decoded"),
        (lambda f: (f / "images1").rename(f / "other"), r"has the views \['images0'\], `views` asks for"),
        (cameras(lambda c: c.update(size=[480, 640])), r"size \[480, 640\] .* im_0.jpg has \[48, 64\]"),
        (
            lambda f: (f / "cameras.json").write_text((f / "cameras.json").read_text().replace("s1", "_1")),
            r"has cameras \['image_1'\], but the trajectory has the views \['images0', 'images1'\]",
        ),
        (lambda f: (f / "obs_dict.pkl").write_bytes(pickle.dumps([1])), "holds a list, expected a dict"),
        (cameras(lambda c: c.update(K=[c["K"]] * 2)), "images1 K has 2 matrices for 6 pictures"),
        (cameras(lambda c: c.update(world_to_camera=c["K"])), "give exactly one of"),
    ],
)
def test_damage_is_named(change, message, root):
    change(root / FIRST)
    with pytest.raises(ValueError, match=message):
        list(Bridge(str(root), views=["images0", "images1"])[0].frames)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no trajectories; expected"):
        Bridge(str(tmp_path))


TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter turn about z
HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("written_as", "values"),
    [
        ("quaternion_xyzw", [0, 0, HALF, HALF]),
        ("quaternion_wxyz", [HALF, 0, 0, HALF]),
        ("euler_xyz", [0, 0, np.pi / 2]),
        ("rotation_vector", [0, 0, np.pi / 2]),
        ("matrix", TURN.ravel()),
    ],
)
def test_every_way_to_write_a_rotation(written_as, values):
    found = to_quaternion(np.array([values], dtype=np.float64), written_as, "here")
    assert np.allclose(found, [[0, 0, HALF, HALF]])


@pytest.mark.parametrize(
    ("written_as", "values", "message"),
    [
        ("matrix", np.diag([1.0, 1, -1]).ravel(), "frame 0: .* is no rotation"),
        ("matrix", np.eye(3).ravel() * 2, "is no rotation"),
        ("quaternion_wxyz", np.array([0.5, 0, 0, 0]), "has length 0.5, expected 1"),
        ("euler_xyz", np.zeros(4), "4 numbers per rotation, euler_xyz has 3"),
    ],
)
def test_what_is_no_rotation_is_named(written_as, values, message):
    with pytest.raises(ValueError, match=message):
        to_quaternion(values[None], written_as, "here")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"cameras.json, camera 'images0', K, frame 0: 1 of 1 matrices hold NaN"),
        (0.0, "fx and fy above 0"),
        (-60.0, "fx and fy above 0"),
    ],
)
def test_cameras_that_are_none_are_named(value, message, root):
    path = root / FIRST / "cameras.json"
    cameras = json.loads(path.read_text())
    cameras["images0"]["K"][0][0] = value
    path.write_text(json.dumps(cameras))
    with pytest.raises(ValueError, match=message):
        Bridge(str(root))[0]
