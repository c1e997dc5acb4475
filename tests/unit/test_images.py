"""A person's own input: every format that is read, and one clear error for everything that is not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ai_wam.action_images import tool_points
from ai_wam.cameras import Cameras
from ai_wam.types import Clip
from ai_wam.video import write_video
from datamodules.image_datamodule import ImagesDataModule

CLIP = Clip(frames=5, size=(64, 64), views=("front", "left_shoulder"))
SIZE = (96, 128)
POSE = [0.3, 0.05, 0.9, 0.0, 1.0, 0.0, 0.0, 0.25]
K = np.array([[110.0, 0, 64], [0, 110, 48], [0, 0, 1]])


def looking(eye, target=(0.3, 0.0, 0.9)) -> np.ndarray:
    """world_from_camera at `eye`, looking at the target, its picture upright."""
    z = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    x = np.cross(z, [0, 0, 1]) / np.linalg.norm(np.cross(z, [0, 0, 1]))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([x, np.cross(z, x), z], axis=1), eye
    return pose


POSES = {"front": looking((1.4, 0.1, 1.5)), "left_shoulder": looking((0.0, 0.9, 1.6))}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two pictures and their camera file, one camera given each way."""
    draw = np.random.default_rng(0)
    for view in POSES:
        Image.fromarray(draw.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / f"{view}.png")
    front = {"K": K.tolist(), "size": list(SIZE), "camera_to_world": POSES["front"].tolist()}
    inverse = np.linalg.inv(POSES["left_shoulder"]).tolist()
    left = {"K": K.tolist(), "size": list(SIZE), "world_to_camera": inverse}
    (tmp_path / "cameras.json").write_text(json.dumps({"front": front, "left_shoulder": left}))
    return tmp_path


def read(place: Path, **changes) -> ImagesDataModule:
    given = {
        "images": {view: str(place / f"{view}.png") for view in POSES},
        "cameras": str(place / "cameras.json"),
        "prompt": "reach",
        "pose": POSE,
    }
    return ImagesDataModule(CLIP, **given | changes)


def edit(place: Path, change) -> None:
    content = json.loads((place / "cameras.json").read_text())
    change(content)
    (place / "cameras.json").write_text(json.dumps(content))


def test_a_sample_is_what_was_given(place: Path):
    module = read(place)
    (batch,) = list(module.predict_dataloader())
    assert batch.video.shape == (1, 2, 3, 5, 64, 64)
    assert batch.keys == ("input",)
    assert batch.prompts == ("reach",)
    assert batch.view_mask.all()
    torch.testing.assert_close(batch.actions[0, 0], torch.tensor(POSE))
    assert batch.action_valid[0].tolist() == batch.video_valid[0].tolist() == [True] + [False] * 4
    expected = torch.from_numpy(np.stack(list(POSES.values()))).float()
    torch.testing.assert_close(batch.cameras.world_from_camera[0, :, 0], expected)
    # 96 x 128 is cropped to 96 x 96, then made 64 x 64
    found = batch.cameras.intrinsics[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([[110 / 1.5, 0, 32], [0, 110 / 1.5, 32], [0, 0, 1]]))


def test_every_instruction_is_a_sample(place: Path):
    batches = list(read(place, prompt=["open", "close"], name="drawer").predict_dataloader())
    assert [batch.keys + batch.prompts for batch in batches] == [("drawer-0", "open"), ("drawer-1", "close")]
    torch.testing.assert_close(batches[0].video, batches[1].video)


def test_one_view_is_enough_to_look(place: Path):
    edit(place, lambda content: content.pop("front"))
    words = {"images": {"left_shoulder": str(place / "left_shoulder.png")}}
    with pytest.raises(ValueError, match=r"no image of the views \['front'\].*missing_views=true"):
        read(place, **words)
    content = json.loads((place / "cameras.json").read_text())
    (place / "cameras.json").write_text(json.dumps(content | {"front": "no camera, and not looked at"}))
    batch = read(place, **words, missing_views=True).batch
    assert batch.view_mask.tolist() == [[False, True]]


def test_of_a_video_the_last_frame_is_now(place: Path):
    frames = np.zeros((3, *SIZE, 3), np.uint8)
    frames[2] = 200
    (place / "front.mp4").write_bytes(write_video(frames, 10.0))
    images = {"front": str(place / "front.mp4"), "left_shoulder": str(place / "left_shoulder.png")}
    video = read(place, images=images).batch.video
    assert float(video[0, 0, :, 0].mean()) == pytest.approx(200 / 127.5 - 1, abs=0.03)


def test_intrinsics_of_another_resolution_are_scaled(place: Path):
    wanted = read(place).batch.cameras.intrinsics

    def double(content):
        content["front"]["size"] = [192, 256]
        content["front"]["K"] = (np.diag([2.0, 2, 1]) @ K).tolist()

    edit(place, double)
    torch.testing.assert_close(read(place).batch.cameras.intrinsics, wanted)


def clicks(hidden: int | None = None) -> dict:
    points = tool_points(torch.tensor([POSE], dtype=torch.float64), 0.1)[0]
    found = {}
    for view, pose in POSES.items():
        pixels = Cameras(torch.from_numpy(K), torch.from_numpy(pose)).project(points, SIZE).pixels
        found[view] = pixels.tolist()
    if hidden is not None:
        found["front"][hidden] = None
    return found


def test_the_pose_is_found_from_three_points_per_view(place: Path):
    action = read(place, pose=None, points=clicks(), openness=0.25).batch.actions[0, 0]
    torch.testing.assert_close(action, torch.tensor(POSE), atol=1e-4, rtol=0)


def test_rlbench_matrices_are_turned(place: Path):
    misc = {}
    for view, pose in POSES.items():
        k, e = Cameras(torch.from_numpy(K), torch.from_numpy(pose)).to_rlbench()
        misc |= {f"{view}_camera_intrinsics": k.tolist(), f"{view}_camera_extrinsics": e.tolist()}
    (place / "misc.json").write_text(json.dumps({**misc, "front_camera_near": 0.01}))
    found, wanted = read(place, cameras=str(place / "misc.json")).batch.cameras, read(place).batch.cameras
    torch.testing.assert_close(found.intrinsics, wanted.intrinsics)
    torch.testing.assert_close(found.world_from_camera, wanted.world_from_camera)


def write_colmap(folder: Path, kind: str = "PINHOLE", scale: float = 1.0) -> str:
    """A text model; one picture has no points, so the line that lists them is empty."""
    from scipy.spatial.transform import Rotation

    lens = "110 110 64 48" if kind == "PINHOLE" else "110 64 48"
    (folder / "cameras.txt").write_text(f"# cameras\n7 {kind} 128 96 {lens}\n")
    lines = ["# images", "# two lines each"]
    for number, (view, pose) in enumerate(POSES.items()):
        inverse = np.linalg.inv(pose)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        numbers = [w, x, y, z, *(inverse[:3, 3] * scale)]
        lines += [f"{number} {' '.join(map(str, numbers))} 7 shots/{view}.png", "1 2 3" if number else ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.parametrize("kind", ["PINHOLE", "SIMPLE_PINHOLE"])
def test_colmap_models_are_read_and_scaled(place: Path, kind: str):
    wanted = read(place).batch.cameras
    folder = write_colmap(place, kind, scale=0.5)
    distance = float(np.linalg.norm(np.subtract(*(pose[:3, 3] for pose in POSES.values()))))
    found = read(place, cameras=folder, baseline=distance).batch.cameras
    torch.testing.assert_close(found.intrinsics, wanted.intrinsics)
    torch.testing.assert_close(found.world_from_camera, wanted.world_from_camera)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, r"a prompt \('reach'\) but no image.*--data\.images\.front"),
        ({"images": {"wrist": "w.png"}}, r"\['wrist'\], which the model does not have.*left_shoulder"),
        ({"images": {"front": "nowhere.png", "left_shoulder": "nowhere.png"}}, r"no image 'nowhere\.png'"),
        (
            {"images": {"front": "front.png"}},
            r"no image of the views \['left_shoulder'\], which the model was",
        ),
        ({"prompt": None}, "no prompt"),
        ({"cameras": None}, "cameras is None and vggt None: give exactly one"),
        ({"cameras": "nowhere.json"}, r"nowhere\.json cannot be read"),
        ({"pose": None}, "give exactly one of the gripper's pose"),
        ({"points": {}}, "give exactly one of the gripper's pose"),
        ({"pose": [0.0] * 7}, "8 numbers"),
        ({"pose": [*POSE[:3], 0.0, 3.0, 0.0, 0.0, 1.0]}, "pose.*quaternion"),
        ({"pose": [*POSE[:7], 80.0]}, "openness must lie between"),
        (
            {"pose": [5.0, 5.0, 5.0, *POSE[3:]]},
            r"view 'front': the gripper at \[5\.0.*far outside.*one world frame",
        ),
        ({"name": "a/b"}, "names a folder"),
        ({"baseline": -1.0}, "baseline must be above 0"),
        ({"cameras": None, "vggt": "nowhere"}, "without a unit of length"),
        ({"pose": None, "points": {"front": [[1.0, 2.0]] * 3}}, "at least two of the views"),
        ({"pose": None, "points": {"front": [[1.0, 2.0]], "left_shoulder": []}}, "must be three pixels"),
        ({"pose": None, "points": clicks(hidden=0)}, "OFFSCREEN: each of the three points"),
        ({"pose": None, "points": dict(zip(POSES, reversed(clicks().values()), strict=True))}, "no pose in"),
    ],
)
def test_input_that_contradicts_itself_is_refused(place: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read(place, **changes)


def invert(content):
    """One of the two cameras; the other one sees the gripper."""
    content["front"]["camera_to_world"] = np.linalg.inv(looking((2.5, 0.1, 2.0))).tolist()


def resize(content, scale):
    """K of another resolution under the old size."""
    content["front"]["K"] = (np.diag([scale, scale, 1]) @ K).tolist()


def mirror(content):
    content["front"]["camera_to_world"][1] = [-x for x in content["front"]["camera_to_world"][1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("front"), r"describes 1 cameras \['left_shoulder'\], but there are 2 pictures"),
        (lambda c: c.update(wrist=c["front"]), r"describes 3 cameras .* 2 pictures"),
        (lambda c: c["front"].update(world_to_camera=np.eye(4).tolist()), "give exactly one of"),
        (lambda c: c["front"].pop("camera_to_world"), "neither pose; give exactly one of"),
        (lambda c: c["front"].pop("size"), 'expected an object with "K", "size"'),
        (lambda c: c["front"].update(size=[96, 96]), "96 x 96 pixels.*aspect ratio is another one"),
        (mirror, r"camera 'front': the pose is left-handed"),
        (lambda c: c["front"]["camera_to_world"][0].__setitem__(0, 2.0), r"camera 'front'.*no rigid motion"),
        (lambda c: c["front"]["K"][0].__setitem__(0, 0.0), "fx and fy above 0"),
        (lambda c: c["front"]["K"][0].__setitem__(0, float("nan")), "NaN or infinity"),
        (lambda c: c["front"].update(K=[K.tolist()] * 3), "matrices for one picture"),
        (lambda c: resize(c, 0.5), "'front': the principal point of K"),
        (lambda c: resize(c, 2.0), "'front': the principal point of K"),
        (invert, r"view 'front': the gripper .* the direction of this camera's matrix"),
    ],
)
def test_a_wrong_camera_file_is_refused(place: Path, change, message: str):
    edit(place, change)
    with pytest.raises(ValueError, match=message):
        read(place)


def test_a_camera_file_of_another_kind_says_what_it_lacks(place: Path):
    (place / "misc.json").write_text(json.dumps({"front_camera_intrinsics": K.tolist()}))
    with pytest.raises(ValueError, match=r"lacks 'front_camera_extrinsics'; it has"):
        read(place, cameras=str(place / "misc.json"))
    with pytest.raises(ValueError, match=r"camera 7 has the model FOV; known are SIMPLE_PINHOLE"):
        read(place, cameras=write_colmap(place, "FOV"))
    (place / "images.txt").write_text("")
    with pytest.raises(ValueError, match=r"no picture named 'front\.png'"):
        read(place, cameras=str(place))
    (place / "cameras.txt").unlink()
    with pytest.raises(ValueError, match="text form"):
        read(place, cameras=str(place))


@pytest.mark.parametrize("data", [b"", b"not a video", "no frames"])
def test_a_video_without_frames_is_refused(place: Path, data: bytes | str):
    if isinstance(data, str):
        data = empty_video()
    (place / "front.mp4").write_bytes(data)
    with pytest.raises(ValueError, match=r"front\.mp4.*at least one"):
        read(
            place,
            images={"front": str(place / "front.mp4"), "left_shoulder": str(place / "left_shoulder.png")},
        )


def empty_video() -> bytes:
    """A well-formed MP4 with a video stream and nothing in it."""
    import io

    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return data.getvalue()


def test_pictures_with_transparency_are_refused(place: Path):
    Image.new("RGBA", SIZE[::-1]).save(place / "front.png")
    with pytest.raises(ValueError, match="'RGBA', expected RGB; save it without transparency"):
        read(place)


def test_without_vggt_the_way_out_is_named(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datamodules.cameras.vggt.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"ai-wam\[vggt\].*camera file"):
        read(place, cameras=None, vggt="nowhere", baseline=1.0)
