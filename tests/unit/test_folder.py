import io
import json

import av
import numpy as np
import pytest
from jsonargparse import auto_cli

from ai_wam.cli import main
from ai_wam.cli.collect import collect
from ai_wam.episodes import EpisodeSource
from ai_wam.video import VideoEncoding, write_video
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.reader import ShardSet
from datamodules.sources.folder import COLUMNS, FolderSource

SQUARES = MovingSquares(episodes=2, frames=5, size=(24, 32), hz=10.0, views=("front", "wrist"))


def write_folder(root):
    """The documented layout: `front` still and camera_to_world, `wrist` moving and world_to_camera."""
    for index in range(len(SQUARES)):
        episode = SQUARES[index]
        folder, frames = root / episode.key, list(episode.frames)
        folder.mkdir()
        for name in SQUARES.views:
            images = [frame.views[name].image for frame in frames]
            (folder / f"{name}.mp4").write_bytes(
                write_video(images, 10.0, VideoEncoding(lossless=True, gop=4))
            )
        views = [frame.views for frame in frames]
        k, size = views[0]["front"].intrinsics.tolist(), [24, 32]
        moving = [np.linalg.inv(view["wrist"].world_from_camera).tolist() for view in views]
        cameras = {
            "front": {"K": k, "size": size, "camera_to_world": views[0]["front"].world_from_camera.tolist()},
            "wrist": {"K": k, "size": size, "world_to_camera": moving},
        }
        (folder / "cameras.json").write_text(json.dumps(cameras))
        rows = [",".join(COLUMNS), *(",".join(str(x) for x in frame.action) for frame in frames)]
        (folder / "actions.csv").write_text("\n".join(rows) + "\n")
        (folder / "instruction.txt").write_text("follow the square\n\n go after it \n")
        (folder / "meta.json").write_text('{"hz": 10, "operator": "ann"}')
    return root


@pytest.fixture
def root(tmp_path):
    (tmp_path / "recordings").mkdir()
    return write_folder(tmp_path / "recordings")


def test_everything_is_read(root):
    source = FolderSource(str(root))
    assert isinstance(source, EpisodeSource)
    assert len(source) == 2
    for index in range(2):
        episode, wanted = source[index], SQUARES[index]
        assert (episode.key, episode.hz) == (wanted.key, 10.0)
        assert episode.instructions == ("follow the square", "go after it")
        assert episode.provenance["operator"] == "ann"
        for found, frame in zip(episode.frames, wanted.frames, strict=True):
            assert found.seconds == frame.seconds
            assert np.allclose(found.action, frame.action)
            for name in SQUARES.views:
                assert np.array_equal(found.views[name].image, frame.views[name].image)
                assert np.allclose(found.views[name].world_from_camera, frame.views[name].world_from_camera)


def test_actions_may_be_missing_and_the_instruction_empty(root):
    (root / "squares-0000" / "actions.csv").unlink()
    (root / "squares-0000" / "instruction.txt").write_text("")
    episode = FolderSource(str(root))[0]
    assert episode.instructions == ("",)
    assert all(frame.action is None for frame in episode.frames)


def edit_cameras(function):
    def change(folder):
        path = folder / "cameras.json"
        cameras = json.loads(path.read_text())
        function(cameras)
        path.write_text(json.dumps(cameras))

    return change


def rewrite(name, change):
    """Edit the bytes of a file."""

    def apply(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def last_row(text):
    return rewrite("actions.csv", lambda data: b"\n".join([*data.split(b"\n")[:-2], text.encode(), b""]))


@pytest.mark.parametrize(
    "change",
    [
        rewrite("actions.csv", lambda data: data + b"\n  \r\n\n"),
        rewrite("actions.csv", lambda data: data.replace(b"\n", b"\r\n")),
        rewrite("actions.csv", lambda data: b"\xef\xbb\xbf" + data.rstrip(b"\n")),
        rewrite("actions.csv", lambda data: data.replace(b",", b", ").replace(b"x", b'"x"', 1)),
        rewrite("instruction.txt", lambda data: b"\xef\xbb\xbf" + data),
    ],
    ids=["blank-end", "crlf", "byte-order-mark", "spaces", "instruction"],
)
def test_text_as_editors_write_it(change, root):
    before = FolderSource(str(root))[0]
    wanted = [frame.action.tolist() for frame in before.frames]
    change(root / "squares-0000")
    episode = FolderSource(str(root))[0]
    assert episode.instructions == before.instructions
    assert [frame.action.tolist() for frame in episode.frames] == wanted


def test_only_line_ends_end_an_instruction(root):
    (root / "squares-0000" / "instruction.txt").write_text("lift\u2028it\x85up\n", encoding="utf-8")
    assert FolderSource(str(root))[0].instructions == ("lift\u2028it\x85up",)


def with_a_hole(data):
    """The video with the frames from 3 on shown one frame later."""
    written = io.BytesIO()
    with av.open(io.BytesIO(data)) as old, av.open(written, "w", format="mp4") as new:
        track = new.add_stream_from_template(old.streams.video[0])
        late = int(0.1 / old.streams.video[0].time_base)
        for packet in (packet for packet in old.demux(video=0) if packet.size):
            if packet.pts >= 3 * late:
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
            packet.stream = track
            new.mux(packet)
    return written.getvalue()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def write_bytes(name, data):
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "meta.json").unlink(), "meta.json cannot be read"),
        (write("meta.json", '{"hz": 0}'), '"hz" is 0, expected frames per second'),
        (
            lambda f: (f / "instruction.txt").unlink(),
            "instruction.txt is missing; write one phrasing per line",
        ),
        (lambda f: (f / "wrist.mp4").unlink(), r"camera 'wrist': its video .*wrist.mp4 is missing"),
        (write("wrist.mp4", "none"), r"wrist.mp4: no readable video"),
        (lambda f: (f / "wrist.mp4").rename(f / "hand.mp4"), r"its video .*wrist.mp4 is missing"),
        (edit_cameras(lambda c: c.pop("wrist")), r"the folder also holds \['wrist.mp4'\]"),
        (edit_cameras(lambda c: c["front"].pop("camera_to_world")), "has neither pose; give exactly one of"),
        (
            edit_cameras(lambda c: c["wrist"].update(camera_to_world=0)),
            r"\['camera_to_world', 'world_to_camera'\]; give",
        ),
        (edit_cameras(lambda c: c["front"].update(size=[32, 24])), r"size \[32, 24\] .* has \[24, 32\]"),
        (edit_cameras(lambda c: c["front"].update(K=[1, 2])), r"'front', K: expected 3x3 numbers"),
        (edit_cameras(lambda c: c["wrist"]["world_to_camera"].pop()), r"'cameras.json wrist pose': 4"),
        (
            edit_cameras(lambda c: c["front"]["K"][0].__setitem__(0, 0)),
            r"cameras.json, camera 'front': .*fx and fy above 0",
        ),
        (
            edit_cameras(lambda c: c["wrist"]["K"][1].__setitem__(1, -32)),
            r"camera 'wrist': .*negative ones \(RLBench's\)",
        ),
        (
            edit_cameras(lambda c: c["wrist"]["world_to_camera"][3][0].__setitem__(0, np.nan)),
            r"cameras.json, camera 'wrist', world_to_camera, frame 3: 1 of 5 matrices hold NaN .* leave",
        ),
        (
            edit_cameras(lambda c: c["wrist"].update(world_to_camera=c["wrist"]["world_to_camera"][0])),
            r"cameras.json, camera 'wrist': the camera sits on the hand, but its pose is the same in all 5",
        ),
        (
            write("actions.csv", ",".join(COLUMNS) + "\n" + "0,0,0,0,0,0,1,1\n" * 4 + "0,nan,0,0,0,0,1,1\n"),
            r"actions.csv, line 6: 'nan' is no finite number",
        ),
        (last_row("0.5"), "actions.csv, line 6: '0.5' has 1 cells, expected the header's 8"),
        (last_row("0,0,0,0,0,0,1,1,"), "has 9 cells, expected the header"),
        (last_row("1_0,0,0,0,0,0,1,1"), "line 6: '1_0' is no finite number such as -0.5 or 1e-3"),
        (last_row("\u0661,0,0,0,0,0,1,1"), "is no finite number"),
        (last_row("0,0,0,0,0,0,1,infinity"), "'infinity' is no finite number"),
        (last_row("0,0,0,0,0,0,1,1e999"), "'1e999' is beyond the largest float64"),
        (last_row('"0,0,0,0,0,0,1,1'), "has 1 cells"),
        (
            rewrite("actions.csv", lambda d: d.replace(b"\n", b"\n\n", 1)),
            r"actions.csv, line 2: '' has 0 cells",
        ),
        (rewrite("actions.csv", lambda d: d.decode().encode("utf-16")), "actions.csv is UTF-16; save it as"),
        (
            write_bytes("instruction.txt", "Löffel".encode("latin-1")),
            r"instruction.txt is not UTF-8 \(byte 1 is 0xf6\)",
        ),
        (write_bytes("instruction.txt", "lift".encode("utf-16-be")), "holds NUL characters, as UTF-16 does"),
        (write("meta.json", '{"hz": 10, "arm": {"mass": [1, NaN]}}'), r"the value of 'arm.mass\[1\]' is NaN"),
        (write("meta.json", '{"hz": 10, "": Infinity}'), "the value of '' is NaN or infinity"),
        (write("meta.json", '{"hz": Infinity}'), "the value of 'hz' is NaN or infinity"),
        (write("meta.json", '{"hz": true}'), '"hz" is True, expected frames per second'),
        (write("meta.json", '{"hz": "10"}'), "\"hz\" is '10', expected frames per second"),
        (write("meta.json", '{"hz": 10, "source": "x"}'), r"the keys \['source'\] are written by the reader"),
        (
            edit_cameras(lambda c: c.update({"../wrist": c.pop("wrist")})),
            r"view '../wrist' must be made of letters, .* by views, as in {'../wrist': wrist}",
        ),
        (
            lambda f: (f / "front.mp4").write_bytes(with_a_hole((f / "front.mp4").read_bytes())),
            r"front.mp4: frame 3 is shown 0.2 s after frame 2, others follow after 0.1 s",
        ),
        (write("meta.json", '{"hz": 20}'), r"front.mp4: frames are shown at 10 a second, .* to have 20"),
        (write("actions.csv", "x,y\n"), r"the first line must be x,y,z,qx,qy,qz,qw,openness, got 'x,y'"),
        (
            write("actions.csv", ",".join(COLUMNS) + "\n0,0,0,0,0,0,1,1\n0,0,0,0,0,0,one,1\n"),
            "actions.csv, line 3",
        ),
        (
            write("actions.csv", ",".join(COLUMNS) + "\n0,0,0,0,0,0,1,1\n"),
            r"'front.mp4': 5, .*'actions.csv': 1",
        ),
    ],
)
def test_errors_name_the_file(change, message, root):
    change(root / "squares-0000")
    with pytest.raises(ValueError, match=message):
        FolderSource(str(root))[0]


def test_no_camera_is_read_from_outside_its_folder(root):
    (root / "squares-0000" / "wrist.mp4").rename(root / "wrist.mp4")
    edit_cameras(lambda c: c.update({"../wrist": c.pop("wrist")}))(root / "squares-0000")
    with pytest.raises(ValueError, match=r"'../wrist': the name of a camera is its video's file name"):
        FolderSource(str(root), views={"front": "front", "../wrist": "wrist"})[0]


def test_pictures_of_a_camera_check_are_no_episode(root):
    """By default they lie in the folder that is looked at, and it is converted next."""
    before = len(FolderSource(str(root)))
    main(["inspect", str(root), "--camera_check"])
    assert len(list((root / "inspection").glob("*.png"))) > 0
    assert len(FolderSource(str(root))) == before
    main(["inspect", str(root), "--camera_check"])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no episode folders; expected"):
        FolderSource(str(tmp_path))


def test_collect_from_the_command_line(root, tmp_path, capsys):
    out = tmp_path / "out"
    config = tmp_path / "convert.yaml"
    config.write_text(
        f"source:\n  class_path: datamodules.sources.folder.FolderSource\n  init_args:\n    path: {root}\n"
        f"out: {out}\nworkers: 0\n"
    )
    auto_cli(collect, as_positional=False, args=["--config", str(config), "--lossless", "true"])
    assert "2 episodes, 11 frames" in capsys.readouterr().out
    shards = ShardSet(out)
    assert [episode.key for episode in shards.episodes] == ["squares-0000", "squares-0001"]
    frame = list(SQUARES[1].frames)[3]
    assert np.array_equal(shards.images(1, "wrist", [3])[0], frame.views["wrist"].image)
