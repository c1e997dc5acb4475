"""Each mistake of docs/data_problems.md, made in recordings of the simulator, is shown as the page says."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import ROOT
from PIL import Image
from plain_recordings import seen_points, write_actions, write_plain

from ai_wam.cli import main
from ai_wam.poses import rotation_from_quaternion
from ai_wam.video import VideoEncoding, write_video
from benchmarks.demonstrations import Demonstrations
from benchmarks.simulators.tabletop.simulator import Tabletop
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet

VIEWS = ("front", "left_shoulder", "wrist")
PAGE = ROOT / "docs/data_problems.md"
ROWS = re.findall(r"^\| (inspect|check|convert) \| `(.*?)` \| (.*?) \|", PAGE.read_text(), re.MULTILINE)


@dataclass
class Recordings:
    """A copy of the recordings, whose mistakes are made in place.

    Attributes:
        root: their folder.
        shards: the true ones.
        points: where the tool is seen, `root`.csv.
    """

    root: Path
    shards: ShardSet

    @property
    def points(self) -> Path:
        return self.root.with_suffix(".csv")

    def episodes(self) -> Iterator[tuple[int, Path]]:
        for index, entry in enumerate(self.shards.episodes):
            yield index, self.root / entry.key

    def actions(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        for index, folder in self.episodes():
            write_actions(folder / "actions.csv", change(self.shards.header(index).actions.copy()))

    def cameras(self, change: Callable[[dict], None]) -> None:
        for _, folder in self.episodes():
            cameras = json.loads((folder / "cameras.json").read_text())
            change(cameras)
            (folder / "cameras.json").write_text(json.dumps(cameras))

    def poses(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        def changed(cameras: dict) -> None:
            for camera in cameras.values():
                camera["camera_to_world"] = change(np.array(camera["camera_to_world"])).tolist()

        self.cameras(changed)

    def pictures(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Of the front camera, "t h w 3"."""
        for index, folder in self.episodes():
            entry = self.shards.episodes[index]
            images = change(self.shards.images(index, "front", range(entry.frames)))
            video = write_video(np.ascontiguousarray(images), entry.hz, VideoEncoding())
            (folder / "front.mp4").write_bytes(video)

    def seen(self, change: Callable[[float, float], tuple[float, float]]) -> None:
        """Points of the front camera."""
        rows = list(csv.DictReader(self.points.read_text().splitlines()))
        lines = [",".join(rows[0])]
        for row in rows:
            x, y = float(row["x"]), float(row["y"])
            x, y = change(x, y) if row["view"] == "front" else (x, y)
            lines.append(f"{row['key']},{row['view']},{row['frame']},{x},{y}")
        self.points.write_text("\n".join(lines) + "\n")


def millimetres(found: Recordings) -> None:
    found.actions(lambda a: a * ([1000] * 3 + [1] * 5))


def exchanged(found: Recordings) -> None:
    def swap(cameras: dict) -> None:
        cameras["front"], cameras["left_shoulder"] = cameras["left_shoulder"], cameras["front"]

    found.cameras(swap)


def flange(found: Recordings) -> None:
    def back(a: np.ndarray) -> np.ndarray:
        axes = rotation_from_quaternion(torch.from_numpy(a[:, 3:7])).numpy()
        return np.hstack([a[:, :3] - 0.1 * axes[:, :, 2], a[:, 3:]])

    found.actions(back)


def mirrored(found: Recordings) -> None:
    found.pictures(lambda images: images[:, :, ::-1])
    found.seen(lambda x, y: (64 - x, y))


def cropped(rows: slice, columns: slice) -> Callable[[Recordings], None]:
    def crop(found: Recordings) -> None:
        size = [rows.stop - rows.start, columns.stop - columns.start]
        found.pictures(lambda images: images[:, rows, columns])
        found.cameras(lambda cameras: cameras["front"].update(size=size))
        found.seen(lambda x, y: (x - columns.start, y - rows.start))

    return crop


def wrong_rate(found: Recordings) -> None:
    for _, folder in found.episodes():
        (folder / "meta.json").write_text('{"hz": 20}')


def still_hand(found: Recordings) -> None:
    def still(cameras: dict) -> None:
        cameras["wrist"]["camera_to_world"] = cameras["wrist"]["camera_to_world"][0]

    found.cameras(still)


def quaternions_from_w(found: Recordings) -> None:
    found.actions(lambda a: a[:, [0, 1, 2, 6, 3, 4, 5, 7]])


MISTAKES = {
    "positions in millimetres": millimetres,
    "the inverse of the cameras' poses": lambda found: found.poses(np.linalg.inv),
    "OpenGL's camera axes": lambda found: found.poses(lambda pose: pose @ np.diag([1.0, -1, -1, 1])),
    "an inverted gripper": lambda found: found.actions(lambda a: np.hstack([a[:, :7], 1 - a[:, 7:]])),
    "the gripper's width in metres": lambda found: found.actions(lambda a: a * ([1] * 7 + [0.08])),
    "two cameras exchanged": exchanged,
    "poses of the flange instead of the tool": flange,
    "mirrored pictures": mirrored,
    "pictures cropped about the middle while K stayed": cropped(slice(8, 56), slice(8, 56)),
    "poses ahead of the pictures": lambda found: found.actions(lambda a: np.vstack([a[2:], a[-1:], a[-1:]])),
    "pictures made smaller while K stayed": lambda found: found.pictures(lambda images: images[:, ::2, ::2]),
    "pictures cropped on one side while K stayed": cropped(slice(0, 64), slice(24, 64)),
    "a wrong rate": wrong_rate,
    "a moving camera with one pose": still_hand,
}


@pytest.fixture(scope="module")
def true_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two demonstrations that open and close the gripper, five frames a second."""
    folder = tmp_path_factory.mktemp("true")
    world = Tabletop(rig="framed", image_size=(64, 64), views=VIEWS, randomise_start=1.0)
    source = Demonstrations(world, tasks=["pick_up_cup"], episodes_per_task=2, record_hz=5.0)
    write_shards(source, folder, 2, workers=0, progress=False)
    return ShardSet(folder)


@pytest.fixture
def recordings(true_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recordings:
    monkeypatch.chdir(tmp_path)
    found = Recordings(tmp_path / "recordings", true_shards)
    write_plain(true_shards, found.root)
    found.points.write_text("\n".join(["key,view,frame,x,y", *seen_points(true_shards, 6)]) + "\n")
    return found


def printed(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> str:
    """What a command prints, and the sentence that it ends with, if any."""
    patch.setattr(sys, "argv", ["ai-wam", *words])
    end = ""
    try:
        main()
    except SystemExit as stop:
        end = str(stop)
    return capsys.readouterr().out + end


def run(by: str, found: Recordings, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What one of the page's three commands prints."""
    if by == "check":
        words = ["inspect", str(found.root), "--camera-check", f"--seen={found.points}", "--max_pixels=2"]
        return printed(patch, capsys, *words)
    config = ["--config=configs/convert/folder.yaml", f"--source.init_args.path={found.root}"]
    said = printed(patch, capsys, "convert", *config, "--out=shards", "--workers=0")
    return said if by == "convert" else printed(patch, capsys, "inspect", "shards")


def pattern(text: str) -> str:
    """A regular expression for a text in which N stands for a number."""
    return re.escape(text).replace("N", r"[\d.e-]+")


def test_the_page_has_every_mistake():
    assert sorted(cause for _, _, cause in ROWS) == sorted(MISTAKES)


@pytest.mark.parametrize(("by", "text", "cause"), ROWS, ids=[cause for *_, cause in ROWS])
def test_a_mistake_is_printed_as_the_page_says(
    by: str,
    text: str,
    cause: str,
    recordings: Recordings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    MISTAKES[cause](recordings)
    said = run(by, recordings, monkeypatch, capsys)
    assert re.search(pattern(text), said), said


def test_right_recordings_are_not_complained_of(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    said = "".join(run(by, recordings, monkeypatch, capsys) for by in ("check", "inspect"))
    found = {cause for _, text, cause in ROWS if re.search(pattern(text), said)}
    assert not found
    assert "1.00 in the first frames" in said
    assert said.count("12 points: median 0.0, worst 0.0 pixels") == len(VIEWS)


def lines(picture: Path) -> np.ndarray:
    """The green and blue pixels that a check painted, "n 2"."""
    red, green, blue = np.moveaxis(np.asarray(Image.open(picture)).astype(int), 2, 0)
    return (red == 70) & (green == 220) & (blue == 90) | (red == 80) & (green == 140) & (blue == 255)


def test_quaternions_in_another_order_are_seen(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    name = f"{recordings.shards.episodes[0].key}-front-00000.png"
    pictures = []
    for change in (lambda _: None, quaternions_from_w):
        change(recordings)
        said = run("check", recordings, monkeypatch, capsys)
        assert said.count("median 0.0") == len(VIEWS)
        pictures.append(lines(recordings.root / "inspection" / name))
    both = pictures[0] & pictures[1]
    assert min(picture.sum() for picture in pictures) > 50
    assert both.sum() < 0.5 * min(picture.sum() for picture in pictures)


def test_exchanged_colours_are_seen(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    run("inspect", recordings, monkeypatch, capsys)
    right = np.asarray(Image.open("shards/inspection/contact_sheet.png")).astype(int)
    shutil.rmtree("shards")
    recordings.pictures(lambda images: images[..., ::-1])
    run("inspect", recordings, monkeypatch, capsys)
    wrong = np.asarray(Image.open("shards/inspection/contact_sheet.png")).astype(int)
    assert np.abs(right - wrong).max() > 100
