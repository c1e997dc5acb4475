"""Tasks, times and names of LeRobot data sets, as LeRobot itself reads them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_fixtures import lerobot as fixture
from source_fixtures import lerobot__v21 as older

from datamodules.sources.lerobot import LeRobotSource
from datamodules.sources.lerobot_meta import short_names

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"


@pytest.fixture
def root(tmp_path):
    fixture.write(tmp_path)
    return tmp_path


def set_column(path, name, values):
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, pa.array(values)), path)


def edit_column(path, name, change):
    set_column(path, name, change(pq.read_table(path).column(name).to_pylist()))


def edit_info(root, change):
    path = root / "meta" / "info.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def data(name, change):
    return lambda root: edit_column(root / DATA, name, change)


def listed(name, change):
    return lambda root: edit_column(root / EPISODES, name, change)


def two_tasks(root):
    """Episode 0: the first task in frames 0 to 3, the second one in 4 to 6."""
    edit_column(root / DATA, "task_index", lambda tasks: [*tasks[:4], 1, 1, 1, *tasks[7:]])
    edit_column(root / EPISODES, "tasks", lambda tasks: [list(fixture.TASKS), tasks[1]])


def test_the_instruction_is_the_one_that_the_frames_name(root):
    edit_column(root / EPISODES, "tasks", lambda tasks: [list(fixture.TASKS), tasks[1]])
    assert [LeRobotSource(str(root))[i].instructions for i in (0, 1)] == [(task,) for task in fixture.TASKS]


def test_an_episode_of_several_tasks_is_refused_or_split(root):
    two_tasks(root)
    with pytest.raises(ValueError, match=r"have the tasks .*'close the drawer'.* \(split_tasks: true\)"):
        LeRobotSource(str(root))[0]
    source, whole = LeRobotSource(str(root), split_tasks=True), LeRobotSource(str(root))
    episodes = [source[i] for i in range(len(source))]
    assert [(e.key, e.instructions[0]) for e in episodes] == [
        ("episode_000000_task0", fixture.TASKS[0]),
        ("episode_000000_task1", fixture.TASKS[1]),
        ("episode_000001", fixture.TASKS[1]),
    ]
    true = fixture.true_episodes([np.linspace(0, 1, n) for n in fixture.LENGTHS])[0]
    frames = list(episodes[1].frames)
    assert [frame.seconds for frame in frames] == [0.0, 0.1, 0.2]
    assert episodes[1].provenance["frames"] == [4, 7]
    assert np.allclose([frame.action[:3] for frame in frames], true.actions[4:, :3], atol=1e-6)
    for number, frame in enumerate(frames, start=4):
        assert np.abs(frame.views["top"].image.astype(float) - true.images["top"][number]).mean() < 8
        camera = fixture.hand_cameras(7, 0)[number]
        assert np.allclose(frame.views["hand"].world_from_camera, camera.world_from_camera)
    assert len(list(episodes[2].frames)) == len(list(whole[1].frames))


def ragged(states):
    return [states[0][:7], *states[1:]]


def forget_task(root):
    set_column(root / TASKS, "task_index", [3, 7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget_task, r"task_index 0 is not in the table of tasks, which has \[3, 7\]"),
        (lambda r: set_column(r / TASKS, "task_index", [1, 1]), "task 1 is 'close the drawer', .* one for"),
        (lambda r: set_column(r / TASKS, "__index_level_0__", [1, 2]), "task 0 is 1, expected a text"),
        (lambda r: (two_tasks(r), (r / TASKS).unlink()), "tasks.parquet"),
        (data("task_index", lambda t: [None, *t[1:]]), "int64 with 1 nulls, exp"),
        (listed("tasks", lambda t: ["push", "pull"]), "tasks is 'push', expected"),
        (listed("length", lambda t: [None, 5]), "length is None, expected"),
        (
            listed("videos/observation.images.top/from_timestamp", lambda t: [-1.0] * 2),
            "from_timestamp of 'observation.images.top' is -1.0, expected seconds",
        ),
        (data("observation.state", ragged), "its rows have different lengths"),
        (data("observation.state", lambda s: [None, *s[1:]]), "row 0 is null"),
        (data("observation.state", lambda s: ["1"] * len(s)), "holds string, expec"),
        (data("episode_index", lambda s: [str(x) for x in s]), "file-000.parquet: "),
        (data("timestamp", lambda t: [np.nan, *t[1:]]), "timestamp, frame 0: .*finite"),
        (data("timestamp", lambda t: [0.0] * len(t)), "timestamp 0 s does not fit"),
        (data("timestamp", lambda t: t[::-1]), "timestamp .* does not fit 10 frames"),
        (data("timestamp", lambda t: [x + 0.05 for x in t]), "the nearest picture is"),
        (data("timestamp", lambda t: [x + 0.9 for x in t]), "needs 7 from 0.9 s on"),
    ],
)
def test_damaged_tables_are_named(change, message, root):
    change(root)
    with pytest.raises(ValueError, match=message):
        LeRobotSource(str(root))[0]


def test_pictures_are_looked_up_by_time(root, tmp_path_factory):
    """Counted from the begin of the file in version 2, from the episode's place in the file in version 3."""
    edit_column(root / EPISODES, "videos/observation.images.top/from_timestamp", lambda _: [0.0, 0.0])
    edit_column(root / EPISODES, "videos/observation.images.hand/from_timestamp", lambda _: [0.0, 0.0])
    edit_column(root / DATA, "timestamp", lambda times: [*times[:7], *[0.7 + time for time in times[7:]]])
    true = fixture.true_episodes([np.zeros(7), np.zeros(5)])[1]
    second = tmp_path_factory.mktemp("v21")
    older.write(second)
    for key, name in fixture.VIEWS.items():
        images = np.concatenate([fixture.pictures(5, 9), true.images[name]])
        where = {"episode_chunk": 0, "episode_index": 1, "video_key": key}
        fixture.encode(second / older.VIDEO.format(**where), images, "libx264")
    data = second / older.DATA.format(episode_chunk=0, episode_index=1)
    edit_column(data, "timestamp", lambda times: [0.5 + time for time in times])
    for source in (LeRobotSource(str(root)), LeRobotSource(str(second), position=None)):
        for number, frame in enumerate(source[1].frames):
            assert frame.seconds == number / 10
            for name, view in frame.views.items():
                assert np.abs(view.image.astype(float) - true.images[name][number]).mean() < 8


def test_lines_of_json_end_at_line_feeds_only(tmp_path):
    older.write(tmp_path)
    tasks = ["pick\u2028up", "close"]
    lines = [json.dumps({"task_index": i, "task": task}, ensure_ascii=False) for i, task in enumerate(tasks)]
    (tmp_path / "meta" / "tasks.jsonl").write_bytes("\r\n".join(lines).encode())
    assert LeRobotSource(str(tmp_path), position=None)[0].instructions == ("pick\u2028up",)


def test_names_that_end_alike_keep_what_tells_them_apart(root):
    """Two cameras of one last part must not share a calibration."""
    front, side = "observation.images.front.rgb", "observation.images.side.rgb"
    keys = {"observation.images.top": front, "observation.images.hand": side}
    edit_info(root, lambda c: c.update(features={keys.get(k, k): f for k, f in c["features"].items()}))
    table = pq.read_table(root / EPISODES)
    for old, new in keys.items():
        table = table.rename_columns([name.replace(old, new) for name in table.column_names])
        (root / "videos" / old).rename(root / "videos" / new)
    pq.write_table(table, root / EPISODES)
    for number in range(2):
        path = root / "meta" / "cameras" / f"episode_{number:06d}.json"
        cameras = json.loads(path.read_text())
        path.write_text(json.dumps({front: cameras["top"], "side_rgb": cameras["hand"]}))
    frame = next(iter(LeRobotSource(str(root))[0].frames))
    assert list(frame.views) == ["front_rgb", "side_rgb"]
    assert np.allclose(frame.views["front_rgb"].world_from_camera, fixture.FRONT.world_from_camera)
    moved = fixture.hand_cameras(7, 0)[0]
    assert np.allclose(frame.views["side_rgb"].world_from_camera, moved.world_from_camera)
    for views in (["side_rgb"], [side], {"side_rgb": "side"}):
        assert len(next(iter(LeRobotSource(str(root), views=views)[0].frames)).views) == 1
    path.write_text(json.dumps({"rgb": cameras["top"]}))
    with pytest.raises(ValueError, match=rf"has cameras \['rgb'\] and not '{front}' or 'front_rgb'"):
        LeRobotSource(str(root))[1]


def test_short_names():
    assert short_names(["a.x", "b.x", "b_x", "c.y"]) == {"a.x": "a_x", "b.x": "b_x", "b_x": "b_x", "c.y": "y"}
    assert short_names(["top", "x.top"]) == {"top": "top", "x.top": "x_top"}


@pytest.mark.parametrize(
    ("feature", "what"),
    [
        ({"dtype": "image"}, r"pictures inside parquet files \(\['observation.images.top'\]\) must"),
        ({"dtype": "video", "info": {"is_depth_map": True}}, r"depth maps \(\['observation.images.top'\]\)"),
        ({"dtype": "video", "info": {"video.is_depth_map": True}}, "are no colours"),
        ({"dtype": "video", "video_info": {"video.is_depth_map": True}}, "are no colours"),
    ],
)
def test_what_is_no_colour_video_is_not_dropped_unsaid(feature, what, root):
    edit_info(root, lambda c: c["features"].update({"observation.images.top": feature}))
    for views in (None, ["observation.images.top"]):
        with pytest.raises(ValueError, match=what):
            LeRobotSource(str(root), views=views)
    assert len(LeRobotSource(str(root), views=["observation.images.hand"])) == 2
