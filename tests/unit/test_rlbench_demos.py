import io
import pickle
import shutil
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from source_fixtures import rlbench_demos as fixture
from source_fixtures.truth import FRONT, WRIST, poses

from ai_wam.episodes import Frame
from datamodules.reading.safe_pickle import load_pickle
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet
from datamodules.sources.rlbench import RLBenchDemos

GOLDEN_K = [[-175.83856040078922, 0, 64], [0, -175.83856040078922, 64], [0, 0, 1]]
GOLDEN_POSE = [[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1]]
FIRST = Path("reach_target", "variation0", "episodes", "episode0")


@pytest.fixture
def root(tmp_path):
    fixture.write(tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Save the demonstration's steps again after `change` had them."""
    tool = poses(fixture.FRAMES)
    steps = [
        fixture.step(pose, 1.0, {"front": FRONT, "wrist": WRIST.moved(pose[:3] - tool[0, :3])}, 0)
        for pose in tool
    ]
    change(steps)
    (folder / "low_dim_obs.pkl").write_bytes(fixture.demo_bytes(steps, None, 4, numpy_1=False))


def test_stride_views_and_tasks_are_the_callers(root):
    source = RLBenchDemos(str(root), tasks=["stack_cups"], views=["wrist"], stride=4)
    frames: list[Frame] = list(source[0].frames)
    assert len(source) == 1
    assert source[0].hz == 5.0
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.2])
    assert np.array_equal(frames[1].action[:3], poses(fixture.FRAMES, 2)[4, :3])
    assert list(frames[1].views) == ["wrist"]
    assert source[0].provenance["variation"] == 7


def test_the_golden_front_camera(root):
    """Public recordings hold this matrix: the camera at x 1.35 looks along -x, 25 degrees down."""

    def golden(steps):
        for step in steps:
            step["misc"]["front_camera_intrinsics"] = np.array(GOLDEN_K)
            step["misc"]["front_camera_extrinsics"] = np.array(GOLDEN_POSE, dtype=float)

    rewrite(root / FIRST, golden)
    with pytest.raises(
        ValueError, match=r"K of front_rgb belongs to pictures of 128 x 128 .* 0.png has 64 x 48"
    ):
        RLBenchDemos(str(root), views=["front"])[0]
    for picture in (root / FIRST / "front_rgb").glob("*.png"):
        Image.new("RGB", (128, 128)).save(picture)
    view = next(iter(RLBenchDemos(str(root), views=["front"])[0].frames)).views["front"]
    assert view.intrinsics[0, 0] == pytest.approx(175.83856040078922)
    right, down, forward = view.world_from_camera[:3, :3].T
    assert np.allclose(right, [0, 1, 0])
    assert np.allclose(down, [0.42262, 0, -0.90631])
    assert np.allclose(forward, [-0.90631, 0, -0.42262])


def test_episodes_come_in_the_order_of_their_numbers(root):
    for number in (10, 9):
        shutil.copytree(root / FIRST, root / FIRST.with_name(f"episode{number}"))
    keys = [RLBenchDemos(str(root), tasks=["reach_target"])[i].key for i in range(3)]
    assert [key.rpartition("-")[2] for key in keys] == ["episode0", "episode9", "episode10"]


@pytest.mark.parametrize(("near", "far"), [(3.2, 0.01), (0.0, 1.0), (1.0, 1.0)])
def test_planes_in_the_wrong_order_are_refused(root, near, far):
    planes = {"front_camera_near": near, "front_camera_far": far}
    rewrite(root / FIRST, lambda steps: [step["misc"].update(planes) for step in steps])
    with pytest.raises(ValueError, match=r"low_dim_obs.pkl, step 0: .* expected 0 < near < far"):
        RLBenchDemos(str(root), views=["front"], depth=True)[0]


def matrices(name, value):
    return lambda steps: [step["misc"].update({name: value}) for step in steps]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            matrices("front_camera_intrinsics", None),
            r"low_dim_obs.pkl: misc\['front_camera_intrinsics'\] is no",
        ),
        (
            matrices("front_camera_extrinsics", np.full((4, 4), np.nan)),
            r"extrinsics'\], frame 0: .* not finite",
        ),
        (
            matrices("wrist_camera_extrinsics", np.eye(4)),
            "sits on the hand, but its pose is the same in all 6",
        ),
        (matrices("front_camera_intrinsics", np.diag([-60.0, 60, 1])), "focal lengths .* of both signs"),
        (lambda steps: steps[2].update(gripper_pose=None), "step 2: gripper_pose was not recorded"),
        (lambda steps: steps[3].update(gripper_open=np.nan), r"gripper_open, frame 3: .* is not finite"),
        (lambda steps: steps.pop(), r"has 5 steps, but pictures \[\] are missing and 1 are too many"),
        (lambda steps: steps.append(steps[0]), r"has 7 steps, but pictures \[6\] are missing"),
        (lambda steps: steps.clear(), "holds no observations"),
    ],
)
def test_wrong_numbers_are_named(change, message, root):
    rewrite(root / FIRST, change)
    with pytest.raises(ValueError, match=message):
        RLBenchDemos(str(root))[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: truncate(f / "low_dim_obs.pkl"), "low_dim_obs.pkl is no readable pickle"),
        (lambda f: (f / "low_dim_obs.pkl").unlink(), "low_dim_obs.pkl cannot be read"),
        (
            lambda f: (f / "low_dim_obs.pkl").write_bytes(pickle.dumps([1])),
            r"holds no observations \(a list\)",
        ),
        (lambda f: (f / "front_rgb" / "2.png").unlink(), r"front_rgb: .* pictures \[2\] are missing"),
        (lambda f: truncate(f / "front_rgb" / "2.png"), "2.png cannot be decoded"),
        (lambda f: Image.new("L", (64, 48)).save(f / "front_rgb" / "2.png"), "2.png has colours 'L'"),
        (lambda f: shutil.rmtree(f / "front_rgb"), r"has the views \['wrist'\], `views` asks for \['front'"),
        (
            lambda f: (f.parents[1] / "variation_descriptions.pkl").unlink(),
            "variation_descriptions.pkl cannot",
        ),
        (
            lambda f: (f / "variation_number.pkl").write_bytes(pickle.dumps("a")),
            "holds 'a', expected a number",
        ),
    ],
)
def test_damaged_files_are_named(change, message, root):
    change(root / FIRST)
    with pytest.raises(ValueError, match=message):
        list(RLBenchDemos(str(root), views=["front", "wrist"])[0].frames)


def test_a_mixed_folder_must_tell_the_variation(root):
    (root / "stack_cups/all_variations/episodes/episode0/variation_number.pkl").unlink()
    with pytest.raises(ValueError, match=r"variation_number\.pkl is missing"):
        RLBenchDemos(str(root), tasks=["stack_cups"])[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"tasks": ["reach_target", "unknown"]}, r"no demonstrations of \['unknown'\]; expected"),
        ({"stride": 0}, "stride is 0"),
        ({"hz": 0.0}, r"hz 0\.0"),
    ],
)
def test_wrong_settings_are_named(words, message, root):
    with pytest.raises(ValueError, match=message):
        RLBenchDemos(str(root), **words)


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


def test_arrays_of_python_2_are_read(tmp_path):
    buffer, values = io.BytesIO(), np.array([1.5, -2.0, 1e300])
    Python2(buffer, protocol=2).dump({"values": values, "scalar": np.float64(0.1)})
    (tmp_path / "old.pkl").write_bytes(buffer.getvalue().replace(b"numpy._core", b"numpy.core"))
    found = load_pickle(tmp_path / "old.pkl")
    assert found["values"].tolist() == values.tolist()
    assert found["scalar"] == 0.1


class Touches:
    """What a hostile pickle does: call something when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    hostile, touched = tmp_path / "demo.pkl", tmp_path / "touched"
    for protocol in (2, 4):
        hostile.write_bytes(pickle.dumps([Touches(touched)], protocol=protocol))
        with pytest.raises(
            ValueError, match=r"demo\.pkl asks for the global (__builtin__\.getattr|pathlib\.Path\.touch)"
        ):
            load_pickle(hostile)
    hostile.write_bytes(b"cnumpy\nndarray.tofile\n.")
    with pytest.raises(ValueError, match=r"the global numpy\.ndarray\.tofile"):
        load_pickle(hostile)
    assert not touched.exists()


def test_depth_of_24_bits_comes_back_in_metres(root, tmp_path):
    """0x000001, 0x010000 and 0xffffff of 2^24 - 1 steps from 0.01 m to 3.2 m."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[0, 0], picture[0, 1], picture[0, 2] = (0, 0, 1), (1, 0, 0), (255, 255, 255)
    for number in range(fixture.FRAMES):
        picture[1, 1, 0] = number
        Image.fromarray(picture).save(root / FIRST / "front_depth" / f"{number}.png")
    source = RLBenchDemos(str(root), tasks=["reach_target"], views=["front"], depth=True)
    wanted = [0.01 + 3.19 / 16777215, 0.01 + 65536 * 3.19 / 16777215, 3.2]
    recorded = [frame.views["front"].depth for frame in source[0].frames]
    assert recorded[0][0, :3] == pytest.approx(wanted, abs=1e-7)
    assert recorded[5][1, 1] == pytest.approx(0.01 + 5 * 65536 * 3.19 / 16777215, abs=1e-6)
    write_shards(source, tmp_path / "out", workers=0, progress=False)
    shards = ShardSet(tmp_path / "out")
    assert np.array_equal(shards.depth(0, "front", range(fixture.FRAMES)), np.stack(recorded))
    again = [frame.views["front"].depth for frame in shards[0].frames]
    assert all(np.array_equal(a, b) for a, b in zip(again, recorded, strict=True))


def test_depth_that_is_missing_is_named(root):
    (root / FIRST / "front_depth" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"front_depth: .* pictures \[3\] are missing"):
        RLBenchDemos(str(root), depth=True)[0]
    rewrite(root / FIRST, lambda steps: steps[2]["misc"].pop("wrist_camera_near"))
    with pytest.raises(ValueError, match=r"wrist_camera_near.*frame 2"):
        RLBenchDemos(str(root), views=["wrist"], depth=True)[0]
    assert next(iter(RLBenchDemos(str(root))[0].frames)).views["front"].depth is None
