import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation
from source_fixtures import lerobot as fixture
from source_fixtures import lerobot__v21 as older

from ai_wam.cli import main
from ai_wam.episodes import Episode, EpisodeSource
from ai_wam.video import VideoEncoding, decode_frames, write_video
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.export.lerobot import LeRobotWriter
from datamodules.reading.rotations import continuous_actions
from datamodules.shards.convert_source import write_shards
from datamodules.sources.lerobot import LeRobotSource

DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
SIDE = "meta/cameras/episode_000001.json"


@pytest.fixture
def root(tmp_path):
    fixture.write(tmp_path)
    return tmp_path


def test_chosen_views_columns_and_stride(root):
    source = LeRobotSource(
        str(root),
        views={"observation.images.hand": "wrist"},
        position="action[0:3]",
        rotation="action[3:7]",
        openness="action[7]",
        stride=2,
    )
    frames = list(source[1].frames)
    true = fixture.true_episodes([np.linspace(0, 1, n) for n in fixture.LENGTHS])[1]
    assert source[1].hz == 5.0
    assert [list(frame.views) for frame in frames] == [["wrist"]] * 3
    assert np.allclose(
        frames[1].action, true.actions[3], atol=1e-6
    )  # action is the next state in the fixture
    assert np.abs(frames[2].views["wrist"].image.astype(float) - true.images["hand"][4]).mean() < 8


def test_a_data_set_may_have_no_poses(root):
    assert all(frame.action is None for frame in LeRobotSource(str(root), position=None)[0].frames)


def edit_json(name, change):
    def edit(root):
        content = json.loads((root / name).read_text())
        change(content)
        (root / name).write_text(json.dumps(content))

    return edit


def edit_column(column, change):
    def edit(root):
        table = pq.read_table(root / DATA).to_pydict()
        table[column] = change(table[column])
        pq.write_table(fixture.table(table), root / DATA)

    return edit


def truncate(root):
    (root / VIDEO).write_bytes((root / VIDEO).read_bytes()[:-900])


def shorter(root):
    fixture.encode(root / VIDEO, fixture.pictures(9), "libx264")


def drop_rows(root):
    pq.write_table(pq.read_table(root / DATA).slice(0, 10), root / DATA)


def lost(value):
    return lambda states: [[value, *state[1:]] for state in states]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            edit_json("meta/info.json", lambda c: c.update(codebase_version="v1.6")),
            r"codebase_version is 'v1.6'",
        ),
        (edit_json("meta/info.json", lambda c: c.pop("fps")), r"info.json lacks \['fps'\]"),
        (edit_json("meta/info.json", lambda c: c.update(fps="ten")), "fps must be a number"),
        (edit_json("meta/info.json", lambda c: c.update(fps=True)), "fps must be a number above 0, got True"),
        (edit_json("meta/info.json", lambda c: c.update(fps=np.inf)), "fps must be .* above 0, got inf"),
        (edit_json("meta/info.json", lambda c: c.update(features=None)), "features must be an object of obj"),
        (
            edit_json("meta/info.json", lambda c: c["features"].update(action=None)),
            "features must be an object of objects",
        ),
        (edit_json("meta/info.json", lambda c: c.update(data_path=3)), "data_path must be text, got 3"),
        (
            edit_json("meta/info.json", lambda c: c.update(data_path="{chunk_index:q}")),
            "path '{chunk_index:q}' cannot be filled with",
        ),
        (
            edit_json("meta/info.json", lambda c: c.update(video_path="{episode_chunk}")),
            r"path '{episode_chunk}' cannot be filled with \['chunk_index', 'file_index', 'video_key'\]",
        ),
        (edit_json("meta/info.json", lambda c: c.update(video_path=None)), "video_path is null, but"),
        (edit_json("meta/info.json", lambda c: c.update(chunks_size=0)), "chunks_size is 0, expected"),
        (lambda r: (r / "meta/info.json").unlink(), "info.json cannot be read"),
        (lambda r: (r / "meta/episodes/chunk-000/file-000.parquet").unlink(), "episodes holds no episodes"),
        (lambda r: (r / DATA).unlink(), "file-000.parquet"),
        (lambda r: (r / DATA).write_bytes(b"PAR1"), r"file-000.parquet: .*; or copy the file again"),
        (drop_rows, "has 3 rows of episode 1, meta says 5"),
        (
            edit_column("timestamp", lambda t: [2 * x for x in t]),
            "timestamp .* does not fit 10 frames per second",
        ),
        (
            edit_column("observation.state", lost(np.nan)),
            r"observation.state\[0:3\], frame 0: .* is not finite",
        ),
        (
            edit_column("observation.state", lambda s: [[2 * x for x in r] for r in s]),
            "has length 2, expected 1",
        ),
        (truncate, r"file-000.mp4: no readable video .*; copy it again"),
        (shorter, "has 9 pictures, episode 1 needs 5 from 0.7 s on"),
        (lambda r: (r / VIDEO).unlink(), "file-000.mp4: .*No such file"),
        (lambda r: (r / SIDE).unlink(), r"cameras.json is missing: LeRobot data sets hold no calibration"),
        (edit_json(SIDE, lambda c: c.pop("top")), r"has cameras \['hand'\] and not 'observation.* or 'top'"),
        (edit_json(SIDE, lambda c: c["top"].update(size=[1, 2])), r"size \[1, 2\] .* has \[48, 64\]"),
        (edit_json(SIDE, lambda c: c["top"].update(size=7)), r"size is 7, expected \[height, width\]"),
        (
            edit_json(SIDE, lambda c: c["hand"]["world_to_camera"][2][0].__setitem__(3, np.nan)),
            r"episode_000001.json, camera 'hand', world_to_camera, frame 2: 1 of 5 matrices hold NaN",
        ),
        (
            edit_json(SIDE, lambda c: c["hand"].update(world_to_camera=c["hand"]["world_to_camera"][0])),
            r"episode 1, camera 'hand': the camera sits on the hand, but its pose is the same",
        ),
        (edit_json(SIDE, lambda c: c["top"]["K"][0].__setitem__(0, -60.0)), "fx and fy above 0, got"),
        (
            lambda r: (r / VIDEO).write_bytes(write_video(fixture.pictures(12), 30.0)),
            "file-000.mp4: frames are shown at 30 a second, but the recording is said to have 10",
        ),
        (
            edit_json(SIDE, lambda c: c["hand"]["world_to_camera"].pop()),
            "hand pose has 4 matrices, episode 1 has 5",
        ),
    ],
)
def test_damage_is_named(change, message, root):
    change(root)
    with pytest.raises(ValueError, match=message):
        list(LeRobotSource(str(root))[1].frames)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"position": "state[0:3]"}, r"has no column \['state'\]; set position"),
        ({"position": "action[0:4]"}, r"action\[0:4\] gives 4 of 8 numbers per row, expected 3"),
        ({"openness": "action[8]"}, r"action\[8\] reaches beyond 'action', which has 8 numbers per row"),
        ({"rotation": "action[5:9]"}, r"action\[5:9\] reaches beyond 'action', .* \(0 to 7\)"),
        ({"rotation": "action[4:4]"}, "the part in brackets is empty"),
        ({"position": "action[a]"}, r"column 'action\[a\]': expected a name"),
        ({"rotation_as": "euler_xyz"}, "4 numbers per rotation, euler_xyz has 3"),
        ({"closed_and_open": (1.0, 1.0)}, "the two values must differ"),
        ({"closed_and_open": (0.0, np.inf)}, "closed_and_open: open must be finite, got inf"),
        ({"views": {"top": "my cam"}}, r"view 'my cam' must be made of letters, .* by views, as in"),
        ({"views": {"top": "a", "observation.images.top": "b"}}, "names one video twice"),
        ({"views": {"side": "top"}}, r"has the views \['observation.images.top'.*`views` asks for"),
        ({"stride": 0}, "stride is 0"),
    ],
)
def test_wrong_settings_are_named(words, message, root):
    with pytest.raises(ValueError, match=message):
        LeRobotSource(str(root), **words)[0]


def test_a_damaged_list_of_episodes_is_named(tmp_path):
    older.write(tmp_path)
    path = tmp_path / "meta" / "episodes.jsonl"
    for text, message in (
        ('{"episode_index": 0}\n', r"line 1 lacks \['length', 'tasks'\]"),
        ("{", "line 1 cannot be read as JSON"),
        ("\n", "episodes.jsonl holds no episodes"),
        ("\n[0]\n", "line 2 holds a list, expected a JSON object"),
        (episode_line(tasks="push"), "line 1: tasks is 'push', expected a list of texts"),
        (episode_line(tasks=[1]), r"tasks is \[1\], expected a list of texts"),
        (episode_line(length=0), "length is 0, expected a whole number of at least 1"),
        (episode_line(length=2.0), "length is 2.0, expected a whole number"),
        (episode_line(episode_index="0"), "episode_index is '0', expected a whole number"),
        (episode_line() * 2, "the list of episodes holds episode 0 twice"),
        (episode_line().encode("utf-16"), "episodes.jsonl is UTF-16"),
    ):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=rf"meta.*{message}"):
            LeRobotSource(str(tmp_path))


def episode_line(**changed):
    return json.dumps({"episode_index": 0, "length": 7, "tasks": ["push"], **changed}) + "\n"


def test_a_missing_package_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'ai-wam\[lerobot\]'"):
        LeRobotSource(str(root))


@pytest.mark.parametrize("store", ["", "memory:/"])
def test_what_is_exported_reads_back(store, tmp_path, capsys):
    out = f"{store}{tmp_path / 'out'}"
    squares = MovingSquares(episodes=3, frames=6, size=(24, 32), hz=5.0, views=("front", "wrist"))
    write_shards(squares, str(tmp_path / "shards"), 2, workers=0, encoding=VideoEncoding(lossless=True))
    main(
        [
            "export",
            "--to=lerobot",
            f"--shards={tmp_path / 'shards'}",
            f"--out={out}",
            "--lossless=true",
        ]
    )
    assert "3 episodes in the layout 'lerobot'" in capsys.readouterr().out
    source = LeRobotSource(out)
    assert isinstance(source, EpisodeSource)
    for index in range(3):
        episode = source[index]
        assert (episode.hz, episode.instructions) == (5.0, squares[index].instructions[:1])
        for found, true in zip(episode.frames, squares[index].frames, strict=True):
            assert np.allclose(found.action, true.action)
            for name, view in true.views.items():
                assert np.array_equal(found.views[name].image, view.image)
                assert np.allclose(found.views[name].intrinsics, view.intrinsics)
                assert np.allclose(found.views[name].world_from_camera, view.world_from_camera)


def test_the_tables_are_lerobots(tmp_path):
    """What its loader asks of them: names, types, indices that count through, a task table with an index."""
    writer = LeRobotWriter(tmp_path, VideoEncoding(browser=True, gop=2))
    for episode in (MovingSquares(episodes=2, frames=6, size=(24, 32), hz=5.0)[i] for i in range(2)):
        writer.write(Episode(episode.key, episode.frames, ("push",), 5.0, {"confidence": 0.25}))
    writer.close()
    info = json.loads((tmp_path / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["fps"]) == ("v3.0", 13, 5)
    second = pq.read_table(tmp_path / "data/chunk-000/file-001.parquet")
    assert set(second.column_names) == {k for k, f in info["features"].items() if f["dtype"] != "video"}
    assert second.schema.field("action").type == pa.list_(pa.float32(), 8)
    assert second.column("index").to_pylist() == list(range(6, 13))
    assert second.column("action.confidence").to_pylist() == [0.25] * 7
    states, actions = second.column("observation.state").to_pylist(), second.column("action").to_pylist()
    assert actions == [*states[1:], states[-1]]
    tasks = pq.read_table(tmp_path / "meta" / "tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0], "task": ["push"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["videos/observation.images.front/file_index"] for row in rows] == [0, 1]
    assert rows[1]["videos/observation.images.front/to_timestamp"] == pytest.approx(7 / 5)
    frames = [decode_frames(path.read_bytes()) for path in sorted(tmp_path.glob("videos/*front/*/*.mp4"))]
    statistics = json.loads((tmp_path / "meta" / "stats.json").read_text())
    mean = np.concatenate(frames).mean(axis=(0, 1, 2)) / 255
    assert np.allclose(np.ravel(statistics["observation.images.front"]["mean"]), mean, atol=0.05)
    assert np.shape(statistics["observation.images.front"]["std"]) == (3, 1, 1)
    tables = [pq.read_table(path) for path in sorted(tmp_path.glob("data/*/*"))]
    state = np.concatenate([table["observation.state"].to_pylist() for table in tables])
    assert np.allclose(statistics["observation.state"]["std"], state.std(axis=0), atol=1e-6)
    assert statistics["observation.state"]["count"] == [13]
    assert set(statistics) == set(info["features"])
    for key, entry in statistics.items():
        assert list(entry) == ["min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99", "count"]
        if info["features"][key]["dtype"] == "video":
            assert {np.shape(entry[name]) for name in entry if name != "count"} == {(3, 1, 1)}
            continue
        column = np.concatenate([np.array(table[key].to_pylist()) for table in tables]).reshape(13, -1)
        for name, share in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
            wanted = np.quantile(column, share, axis=0, method="inverted_cdf")
            assert np.allclose(entry[name], wanted), (key, name)
    levels = np.concatenate(frames)[..., 0] / 255
    top = np.quantile(levels, 0.99, method="inverted_cdf")
    assert np.ravel(statistics["observation.images.front"]["q99"])[0] == pytest.approx(top, abs=0.1)


def test_signs_of_quaternions_do_not_jump_in_exports(tmp_path):
    frames = list(MovingSquares(1, 8, (16, 16), hz=5.0)[0].frames)
    half = 0.4 + np.arange(len(frames)) * 0.3
    for frame, angle, sign in zip(frames, half, [1, -1] * 4, strict=True):
        frame.action[3:7] = sign * np.array([np.sin(angle), 0, 0, np.cos(angle)])
    writer = LeRobotWriter(tmp_path, VideoEncoding())
    writer.write(Episode("turning", iter(frames), ("turn",), 5.0, {}))
    states = np.array(pq.read_table(tmp_path / DATA).column("observation.state").to_pylist())
    assert np.allclose(states[:, [3, 6]], np.stack([np.sin(half), np.cos(half)], axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (MovingSquares(2, 4, (16, 16), hz=4.0), "rate, views and actions .*4.0.* the first one .*5.0"),
        (MovingSquares(2, 4, (16, 16), hz=5.0, actions=False), "export them into several"),
        (MovingSquares(2, 4, (16, 16), hz=5.0, views=("top",)), "export them into several"),
    ],
)
def test_episodes_of_two_kinds_are_refused(second, message, tmp_path):
    writer = LeRobotWriter(tmp_path, VideoEncoding())
    writer.write(MovingSquares(2, 4, (16, 16), hz=5.0)[0])
    with pytest.raises(ValueError, match=message):
        writer.write(second[1])


def test_confidence_lies_between_0_and_1(tmp_path):
    episode = MovingSquares(2, 4, (16, 16), hz=5.0)[0]
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\]"):
        LeRobotWriter(tmp_path, VideoEncoding()).write(
            Episode("e", episode.frames, ("push",), 5.0, {"confidence": 1.5})
        )


def test_millimetres_and_degrees_have_settings(root):
    """The same numbers, in other units."""

    def other_units(rows):
        turned = [Rotation.from_quat(row[3:7]).as_euler("xyz", degrees=True) for row in rows]
        return [
            [*(1000 * x for x in row[:3]), *angles, 0, row[7]]
            for row, angles in zip(rows, turned, strict=True)
        ]

    before = [frame.action for frame in LeRobotSource(str(root))[0].frames]
    edit_column("observation.state", other_units)(root)
    words = {"rotation": "observation.state[3:6]", "rotation_as": "euler_xyz"}
    with pytest.raises(
        ValueError, match=r"observation.state\[3:6\], frame 0: angles .* add _degrees to the source's"
    ):
        LeRobotSource(str(root), **words)[0]
    words |= {"rotation_as": "euler_xyz_degrees", "metres_per_unit": 0.001}
    after = [frame.action for frame in LeRobotSource(str(root), **words)[0].frames]
    assert np.allclose(continuous_actions(np.stack(before)), continuous_actions(np.stack(after)), atol=1e-6)
