import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from source_fixtures import droid as fixture

from ai_wam.cameras import Cameras
from ai_wam.video import write_video
from datamodules.sources.droid import Droid
from datamodules.sources.droid_calibration import Limits, check_fixed_camera, check_hand_camera

FIRST = Path("raw", "CLVR", "success", "2023-05-09", "Tue_May__9_02:08:20_2023")
MP4 = Path("recordings", "MP4")
VIDEO = MP4 / f"{fixture.SERIALS['ext1']}.mp4"
ARM = "observation/robot_state/cartesian_position"
GRIPPER = "observation/robot_state/gripper_position"
CLOCK = "observation/timestamp"
EXT1 = f"observation/camera_extrinsics/{fixture.SERIALS['ext1']}_left"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("droid")
    fixture.write(folder)
    return folder


@pytest.fixture
def root(written, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "droid"))


def source(root, **words):
    return Droid(str(root / "raw"), **{"annotations": str(root / "annotations"), **words})


def test_verdicts_stay_with_the_episode(root):
    first, second = (source(root)[i].provenance["calibration"] for i in range(2))
    assert {name: v["kept"] for name, v in first.items()} == {"wrist": True, "ext1": True, "ext2": False}
    assert first["ext1"]["source"] == "cam2base_extrinsic_superset.json"
    assert "the arm is elsewhere" in first["ext2"]["why"]
    assert all(verdict["kept"] for verdict in second.values())
    json.dumps(first, allow_nan=False)


def test_a_calibration_that_is_not_believed_is_lost_and_its_pictures_stay(root):
    frame = next(iter(source(root)[0].frames))
    assert np.isnan(frame.views["ext2"].world_from_camera).all()
    assert np.isfinite(frame.views["ext2"].intrinsics).all()
    assert frame.views["ext2"].image.shape == (*fixture.SIZE, 3)


def test_a_tool_that_is_never_in_the_picture_tells(root):
    record_intrinsics(root / FIRST)
    verdict = source(root, annotations=None)[0].provenance["calibration"]["ext1"]  # as recorded: looks away
    assert not verdict["kept"]
    assert verdict["why"] == "the tool projects into the picture in 0% of the frames, below 50%"


def record_intrinsics(folder):
    k = np.array([[fixture.LENS["focal"], 0, 82.5], [0, fixture.LENS["focal"], 43.0], [0, 0, 1]])
    with h5py.File(folder / "trajectory.h5", "a") as file:
        for serial in fixture.SERIALS.values():
            file[f"observation/camera_intrinsics/{serial}_left"] = np.tile(k, (fixture.FRAMES, 1, 1))


def test_recorded_intrinsics_are_for_the_pictures_as_they_are(root):
    record_intrinsics(root / FIRST)
    view = next(iter(source(root, annotations=None, views=["ext2"])[0].frames)).views["ext2"]
    assert view.intrinsics.tolist() == [[120, 0, 82.5], [0, 120, 43], [0, 0, 1]]


def test_offset_and_stride(root):
    frames = list(source(root, views=["wrist"], tool_offset=(0.0, 0.0, 0.1), stride=3)[0].frames)
    tool = fixture.tool_poses(0)[3]
    assert np.allclose(frames[1].action[:3], tool[:3, 3] + 0.1 * tool[:3, 2])
    assert frames[1].seconds == pytest.approx(0.2)
    assert len(frames) == 4


def test_a_video_may_differ_by_the_slack(root):
    path = root / FIRST / VIDEO
    path.write_bytes(write_video(fixture.discs(np.zeros((fixture.FRAMES, 2)), 0)[:10], 15.0))
    with pytest.raises(ValueError, match=r"has 10 pictures, trajectory.h5 12 steps; .* \(slack: 2\)"):
        source(root)[0]
    assert len(list(source(root, slack=2)[0].frames)) == 10


def edit(key, change):
    def apply(folder):
        with h5py.File(folder / "trajectory.h5", "a") as file:
            values = change(np.array(file[key]))
            del file[key]
            if values is not None:
                file[key] = values

    return apply


def lost(values):
    values[4] = np.nan
    return values


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:900])


def rewrite(**words):
    def apply(folder):
        path = next(folder.glob("metadata_*.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), **words}))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(ARM, lambda v: None), f"trajectory.h5 has no '{ARM}'"),
        (edit(ARM, lambda v: v[:, :5]), r"cartesian_position': shape \(12, 5\), expected some rows of 6"),
        (edit(ARM, lost), "cartesian_position', frame 4: .* is not finite"),
        (edit(EXT1, lambda v: v[:7]), r"_left': shape \(7, 6\), expected 12 rows of 6"),
        (edit(EXT1, lost), "_left', frame 4: .* is not finite"),
        (truncate("trajectory.h5"), r"trajectory.h5 cannot be read .*; copy the recording again"),
        (lambda f: (f / "trajectory.h5").unlink(), "trajectory.h5 cannot be read"),
        (truncate(VIDEO), r"22008760.mp4: no readable video"),
        (
            lambda f: (f / VIDEO).unlink(),
            r"MP4 has the views \['wrist', 'ext2'",
        ),
        (rewrite(uuid=None), "has no uuid"),
        (rewrite(uuid="another"), "has no intrinsics of camera 18026681"),
        (lambda f: next(f.glob("metadata_*")).write_text("{"), "cannot be read as JSON"),
    ],
)
def test_damage_is_named(change, message, root):
    change(root / FIRST)
    with pytest.raises(ValueError, match=message):
        list(source(root, views=["wrist", "ext1"])[0].frames)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"views": ["front"]}, r"views is \['front'\]; choose of"),
        ({"annotations": "nowhere"}, "nowhere is not a folder"),
        ({"outcomes": ["failure"]}, r"holds no recordings; expected <lab>/failure"),
        ({"stride": 0}, "stride is 0"),
        ({"intrinsics_size": (720, 720)}, r"intrinsics are for \(720, 720\), of another shape"),
    ],
)
def test_wrong_settings_are_named(words, message, root):
    with pytest.raises(ValueError, match=message):
        source(root, **words)[0]


LENS = {"cameraMatrix": [120, 82.5, 120, 43]}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "intrinsics.json",
            {"18026681": {"cameraMatrix": [1, 2]}},
            r"18026681, cameraMatrix: \[1, 2\], expected 4",
        ),
        ("intrinsics.json", {"18026681": {}}, "cameraMatrix: None"),
        ("intrinsics.json", {"18026681": [1, 2, 3, 4]}, "is no object"),
        ("intrinsics.json", None, "None is no object"),
        (
            "intrinsics.json",
            {"18026681": LENS | {"distCoeffs": [0.1, 0, 0, 0, 0]}},
            "its pictures are distorted",
        ),
        (
            "cam2base_extrinsic_superset.json",
            {"22008760_left": [1, 2, 3, 4, 5]},
            "22008760_left: .* expected 6",
        ),
        ("cam2base_extrinsic_superset.json", {"22008760_left": "no"}, "holds no numbers"),
        ("cam2base_extrinsic_superset.json", [1], "is no object"),
        ("droid_language_annotations.json", {"language_instruction1": 7}, "the instruction 7 is no text"),
    ],
)
def test_damaged_annotations_are_named(root, name, value, message):
    path = root / "annotations" / name
    content = json.loads(path.read_text())
    uuid = next(iter(json.loads((root / "annotations" / "intrinsics.json").read_text())))
    path.write_text(json.dumps(content | {uuid: value}))
    with pytest.raises(ValueError, match=rf"{name}, CLVR.*{message}"):
        source(root)[0]
    path.write_text(json.dumps(content))  # mended, it is read again
    source(root)[0]


@pytest.mark.parametrize(
    "name", ["control/step_start", f"cameras/{fixture.SERIALS['ext1']}_estimated_capture", ""]
)
def test_recorded_clocks_are_read(root, name):
    """In milliseconds; the robot's in seconds and nanoseconds."""
    clock = (np.arange(fixture.FRAMES) * 1000 / 15).astype(int) + 1_690_000_000_000

    def write(milliseconds):
        whole, rest = (f"robot_state/robot_timestamp_{unit}" for unit in ("seconds", "nanos"))
        parts = (
            {name: milliseconds} if name else {whole: milliseconds // 1000, rest: milliseconds % 1000 * 10**6}
        )
        with h5py.File(root / FIRST / "trajectory.h5", "a") as file:
            for key, values in parts.items():
                file.pop(f"{CLOCK}/{key}", None)
                file[f"{CLOCK}/{key}"] = values

    later = np.arange(len(clock)) > 4
    write(clock)
    assert len(list(source(root)[0].frames)) == fixture.FRAMES
    for change, said in (
        (3000, "step 5 comes 3.07 s after step 4"),
        (-500, "step 5 comes -0.433 s after step 4"),
    ):
        write(clock + change * later)
        with pytest.raises(ValueError, match=rf"trajectory.h5, {CLOCK}/{name}.*: {said}.*longest_gap"):
            source(root)[0]
    write(clock + 3000 * later)
    assert len(list(source(root, longest_gap=4.0)[0].frames)) == fixture.FRAMES


def test_a_gripper_in_metres_is_read_or_refused(root):
    before = [frame.action[7] for frame in source(root)[0].frames]
    edit(GRIPPER, lambda closed: 0.085 * (1 - closed))(root / FIRST)
    after = [frame.action[7] for frame in source(root, closed_and_open=(0.0, 0.085))[0].frames]
    assert np.allclose(after, before)
    edit(GRIPPER, lambda metres: 1000 * metres)(root / FIRST)
    with pytest.raises(
        ValueError, match=r"gripper_position lies between .* but closed_and_open is \[1.0, 0.0\]"
    ):
        source(root)[0]
    with pytest.raises(ValueError, match="the first two must differ"):
        source(root, closed_and_open=(1.0, 1.0))


def test_angles_in_degrees_are_refused(root):
    edit(ARM, lambda arm: np.column_stack([arm[:, :3], np.degrees(arm[:, 3:])]))(root / FIRST)
    with pytest.raises(
        ValueError, match=r"cartesian_position, frame 0: angles .* more than a turn in radians"
    ):
        source(root)[0]


def test_a_missing_package_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'ai-wam\[droid\]'"):
        source(root)


def test_a_camera_on_the_hand_must_follow_it():
    tool = fixture.tool_poses(0)
    assert check_hand_camera(tool @ fixture.HAND, tool, "h5", Limits()).kept
    still = check_hand_camera(np.tile(tool[:1] @ fixture.HAND, (len(tool), 1, 1)), tool, "h5", Limits())
    assert not still.kept
    assert "but it sits on it" in still.why


def verdict_of(tool, camera, images, step=1):
    shape = (len(tool), 1, 1)
    cameras = Cameras(
        torch.from_numpy(np.tile(camera.intrinsics, shape)),
        torch.from_numpy(np.tile(camera.world_from_camera, shape)),
    )
    looks = list(enumerate(images))[::step]
    return check_fixed_camera(cameras, tool[:, :3, 3], fixture.SIZE, looks, "h5", Limits())


def test_a_camera_is_believed_within_centimetres_and_refused_beyond():
    """How far off a calibration may be: a disc of 9 pixels is 8 cm wide here, the looked-at circle 10 cm."""
    tool = fixture.tool_poses(0)
    images = fixture.discs(fixture.pixels(fixture.EXT1, tool[:, :3, 3]), 0)
    kept = [
        verdict_of(tool, fixture.EXT1.moved(np.array([0, metres, 0])), images).kept
        for metres in (0.0, 0.03, 0.3)
    ]
    assert kept == [True, True, False]


def test_an_arm_that_rests_tells_nothing():
    tool = fixture.tool_poses(0)
    tool[:, :3, 3] = tool[0, :3, 3]
    verdict = verdict_of(tool, fixture.EXT1, fixture.discs(np.zeros((len(tool), 2)), 0))
    assert verdict.kept
    assert "moves too little" in verdict.why
    assert "motion" not in verdict.measured
