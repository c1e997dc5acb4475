"""`ai-wam inspect`: what it says of good shards, and what of broken ones."""

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ai_wam.cli import main
from ai_wam.episodes import Frame
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.checks.inspection import chosen_frames
from datamodules.shards.convert_source import write_shards


@dataclass(frozen=True)
class InView(MovingSquares):
    """Squares whose tool stays in the pictures, or is `beside` them, metres."""

    beside: float = 0.0

    def _frames(self, index: int) -> Iterator[Frame]:
        for frame in super()._frames(index):
            action = frame.action
            if action is not None:
                action = action * [0.3, 0.3, 1, 1, 1, 1, 1, 1] + [self.beside, *[0] * 7]
            yield replace(frame, action=action)


SOURCE = InView(3, 20)


@pytest.fixture
def record(tmp_path: Path):
    def write(source: MovingSquares) -> Path:
        write_shards(source, tmp_path / "data", 2, workers=0, progress=False)
        return tmp_path / "data"

    return write


def edit_index(folder: Path, change) -> None:
    path = folder / "shard-000000.json"
    index = json.loads(path.read_text())
    change(index["episodes"][0])
    path.write_text(json.dumps(index))


def test_good_shards(record, capsys: pytest.CaptureFixture):
    folder = record(SOURCE)
    main(["inspect", str(folder)])
    said = capsys.readouterr().out
    for line in (
        "episodes   3, 63 frames, 0.1 min",
        "duration   1.0 to 1.1 s, median 1.1 s",
        "rate       20 Hz (3 episodes)",
        "views      front 64x64, left_shoulder 64x64 (3 episodes)",
        "captions   3 different ones",
        "'follow the square' (3)",
        "z 0.800 to 0.800 m",
        "openness 0.00 to 1.00 (1 = open), 0.00 in the first frames",
        "round trip 48 frames of 3 episodes: median",
        "tool in no picture 0.0%",
    ):
        assert line in said
    saved = json.loads((folder / "inspection" / "inspection.json").read_text())["episodes"]
    assert [episode["key"] for episode in saved] == [SOURCE[i].key for i in range(3)]
    assert all(episode["round_trip"]["worst_mm"] < 1 for episode in saved)
    sheet = np.asarray(Image.open(folder / "inspection" / "contact_sheet.png"))
    assert sheet.shape[0] > 3 * 144
    assert sheet.shape[1] > 2 * 3 * 144
    assert (sheet.max(-1) - sheet.min(-1) > 128).mean() > 0.01  # coloured points


def violations(folder: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(folder), *words])
    assert stop.value.code == 1
    return str(stop.value)


def test_a_tool_that_no_camera_sees(record):
    said = violations(record(replace(SOURCE, beside=3.0)))
    assert "violations in 3 episodes" in said
    assert "no camera sees the tool in 16 of 16 frames" in said


def test_a_hand_camera_that_stands_still(record):
    far = MovingSquares(1, 12, views=("front", "hand"))
    assert "'hand' is named after a hand, but its camera stands still while the tool" in violations(
        record(far)
    )


def change_cameras(folder: Path, change) -> None:
    """Write the shard's first episode again with other matrices, as no writer of ours would."""
    shard = json.loads((folder / "shard-000000.json").read_text())
    data = bytearray((folder / shard["file"]).read_bytes())
    for episode in shard["episodes"]:
        offset, size, _ = episode["members"]["cameras.npz"]
        with np.load(io.BytesIO(bytes(data[offset : offset + size]))) as stored:
            arrays = {name: stored[name] for name in stored.files}
        change(arrays)
        changed = io.BytesIO()
        np.savez(changed, **arrays)
        data[offset : offset + size] = changed.getvalue()
        episode["members"]["cameras.npz"][2] = zlib.crc32(changed.getvalue())
    (folder / shard["file"]).write_bytes(data)
    (folder / "shard-000000.json").write_text(json.dumps(shard))


def test_focal_lengths_that_are_none(record):
    folder = record(SOURCE)
    change_cameras(folder, lambda arrays: arrays["front.intrinsics"].__imul__([[-1], [-1], [1]]))
    assert "view 'front', frame 0: matrices must be finite" in violations(folder)


def test_k_of_another_picture_is_a_violation(record):
    folder = record(SOURCE)
    change_cameras(folder, lambda arrays: arrays["front.intrinsics"].__imul__([[2], [2], [1]]))
    assert "view 'front': the principal point of K, (64.0, 64.0), lies far from the middle" in violations(
        folder
    )


def test_a_tool_that_one_camera_sees_is_a_violation(record):
    """Action images of it cannot be read back; the other camera is turned away."""

    def turn(arrays):
        arrays["left_shoulder.world_from_camera"][..., :2, 3] += 5.0

    folder = record(SOURCE)
    change_cameras(folder, turn)
    assert "one camera of 2 at most sees the tool in 16 of 16 frames (limit 50%)" in violations(folder)
    main(["inspect", str(folder), "--limits.one_view=1"])


def test_millimetres_are_a_violation_and_a_warning(record, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = record(SOURCE)
    change_cameras(folder, lambda arrays: arrays["front.world_from_camera"][..., :3, 3].__imul__(1000))
    said = violations(folder, "--limits.one_view=1")
    assert "camera 'front' is 1499 m from the tool, more than 10 m" in said
    main(["inspect", str(folder), "--limits.one_view=1", "--bounds.camera=2000"])
    source = tmp_path / "source.yaml"
    init = {"episodes": 1, "frames": 12, "beside": 99.0}
    source.write_text(json.dumps({"class_path": f"{__name__}.InView", "init_args": init}))
    main(["convert", f"--source={source}", f"--out={tmp_path / 'converted'}", "--workers=0"])
    said = capsys.readouterr().out
    assert (
        "warning: squares-0000: the tool is 99.06 m from the world's origin, more than 10 m (give the" in said
    )


def test_lost_calibrations_are_no_violation(record, capsys: pytest.CaptureFixture):
    """Video only: whether the tool is in the picture is unknown."""
    folder = record(replace(SOURCE, episodes=2))
    change_cameras(folder, lambda arrays: [array.fill(np.nan) for array in arrays.values()])
    main(["inspect", str(folder)])
    said = capsys.readouterr().out
    assert "no view has a calibration: usable for video only (2 episodes)" in said
    assert "tool in no picture" not in said


def test_what_cannot_be_read_back_is_a_violation(record):
    """Both cameras see the tool, but stand at one place, so that no distance can be told."""

    def together(arrays):
        arrays["left_shoulder.world_from_camera"][:] = arrays["front.world_from_camera"]

    folder = record(SOURCE)
    change_cameras(folder, together)
    said = violations(folder)
    assert "action images of 16 of 16 frames whose tool two cameras see cannot be read back" in said
    main(["inspect", str(folder), "--limits.unread=1", "--limits.residual_mm=1e6"])


def test_a_damaged_video_names_shard_key_and_member(record):
    folder = record(SOURCE)
    shard = folder / "shard-000000.tar"
    member = json.loads((folder / "shard-000000.json").read_text())["episodes"][1]["members"]["front.mp4"]
    data = bytearray(shard.read_bytes())
    data[member[0] + member[1] // 2] ^= 255
    shard.write_bytes(data)
    said = violations(folder)
    assert "violations in 1 episode:" in said
    assert "shard-000000.tar, key 'squares-0001', member 'front.mp4' is damaged" in said
    assert (folder / "inspection" / "contact_sheet.png").is_file()  # of the good ones


@pytest.mark.parametrize("frames", [19, 21])
def test_an_index_that_says_other_frames_than_the_episode(record, frames: int):
    folder = record(SOURCE)
    edit_index(folder, lambda episode: episode.update(frames=frames))
    assert f"member 'json' is damaged: its frames is 20, the index says {frames}" in violations(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "shard-000001.tar").write_bytes(b"cut"), "has 3 bytes, its index says"),
        (lambda f: (f / "index.json").write_text('{"schema": 7}'), "schema version 7; .* reads 1"),
        (lambda f: (f / "index.json").unlink(), "has no index.json; record episodes"),
    ],
)
def test_folders_that_cannot_be_read(record, change, words: str):
    folder = record(SOURCE)
    change(folder)
    with pytest.raises(SystemExit, match=words):
        main(["inspect", str(folder)])


def test_cameras_are_checked_against_seen_points(record, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = record(SOURCE)
    place = list(SOURCE[0].frames)[5].action
    points = tmp_path / "seen.csv"
    right = [
        64 / 0.7 * place[0] + 32,
        64 - (64 / 0.7 * place[1] + 32),
    ]  # the camera hangs 0.7 m above, y down
    points.write_text(f"key,view,frame,x,y\nsquares-0000,front,5,{right[0]},{right[1]}\n")
    out = tmp_path / "check"
    words = ["inspect", str(folder), "--camera_check=true", f"--seen={points}", f"--out={out}"]
    main(words)
    assert "1 point: median 0.0, worst 0.0 pixels" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["squares-0000-front-00005.png"]
    points.write_text(f"key,view,frame,x,y\nsquares-0000,front,5,{right[0] + 6},{right[1] + 8}\n")
    with pytest.raises(SystemExit, match="cameras of front miss the tool by more than 5 pixels"):
        main(words)
    assert "median 10.0, worst 10.0 pixels" in capsys.readouterr().out
    points.write_text("key,view,frame,x,y\nsquares-0000,front,99,1,1\n")
    with pytest.raises(SystemExit, match=r"1 point of no recorded frame, .*'front', 99"):
        main(words)
    points.write_text("x,y\n")
    with pytest.raises(SystemExit, match="expected key,view,frame,x,y"):
        main(words)


def axes_of_opengl(arrays):
    arrays["front.world_from_camera"][..., 1:3] *= -1


def calibration_lost(arrays):
    arrays["front.world_from_camera"][:] = np.nan


@pytest.mark.parametrize("change", [axes_of_opengl, calibration_lost])
@pytest.mark.parametrize("seen", [True, False])
def test_a_tool_without_a_place_in_the_picture_fails(record, tmp_path: Path, capsys, change, seen: bool):
    """Behind the camera it has no pixel, and no distance to where it was seen: that passed as NaN."""
    folder = record(replace(SOURCE, episodes=1))
    change_cameras(folder, change)
    (tmp_path / "seen.csv").write_text("key,view,frame,x,y\nsquares-0000,front,5,32,32\n")
    words = [f"--seen={tmp_path / 'seen.csv'}"] * seen
    with pytest.raises(SystemExit, match=r"cameras of front miss the tool .* or have it behind them"):
        main(["inspect", str(folder), "--camera-check", f"--out={tmp_path / 'check'}", *words])
    assert ("median inf, worst inf" in capsys.readouterr().out) == seen


def test_seen_points_without_the_check_are_refused():
    with pytest.raises(SystemExit, match=r"--seen points.csv is for the camera check; give --camera_check"):
        main(["inspect", "anywhere", "--seen=points.csv"])


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_seen_point_must_be_a_number(record, tmp_path: Path, number: str):
    (tmp_path / "seen.csv").write_text(f"key,view,frame,x,y\nsquares-0000,front,5,{number},32\n")
    with pytest.raises(SystemExit, match=r"seen.csv, line 2: x must be finite, got (nan|inf)"):
        main(["inspect", str(record(SOURCE)), "--camera-check", f"--seen={tmp_path / 'seen.csv'}"])


@pytest.mark.parametrize(
    "words", [["--camera-check"], ["--camera_check"], ["--camera_check", "true"], ["--camera-check=true"]]
)
def test_cameras_are_shown_without_points(record, tmp_path: Path, capsys, words: list[str]):
    main(["inspect", str(record(SOURCE)), *words, f"--out={tmp_path / 'check'}"])
    assert "overlays of every 30th frame of the first 3 of" in capsys.readouterr().out
    assert len(list((tmp_path / "check").iterdir())) == 3 * 2


def test_other_layouts_are_told_what_is_accepted(tmp_path: Path):
    (tmp_path / "task" / "variation0").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"folders of shards and of plain recordings .*ai-wam convert"):
        main(["inspect", str(tmp_path), "--camera-check"])


def test_frames_are_spread_evenly():
    assert chosen_frames(1, 5) == [0]
    assert chosen_frames(9, 3) == [0, 4, 8]
    assert chosen_frames(2, 16) == [0, 1]
