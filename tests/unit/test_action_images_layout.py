import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from source_fixtures import action_images_layout as fixture
from source_fixtures.truth import pictures

from ai_wam.cli import main
from ai_wam.episodes import Episode
from ai_wam.video import VideoEncoding, decode_frames, write_video
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.export.action_images import ActionImagesWriter
from datamodules.shards.convert_source import write_shards
from datamodules.sources.action_images import ActionImagesLayout

FIRST = Path("close_jar", "variation3", "episodes", "episode0")


@pytest.fixture
def root(tmp_path):
    fixture.write(tmp_path)
    return tmp_path


def test_cameras_are_named_and_chosen(root):
    (root / FIRST.parents[1].with_name("variation10")).rename(root / "elsewhere")
    episode = ActionImagesLayout(str(root), views={"view10": "left_shoulder"}, stride=2)[0]
    frames = list(episode.frames)
    assert [list(frame.views) for frame in frames] == [["left_shoulder"]] * 2
    assert episode.hz == 2.5
    assert frames[1].action[0] == np.load(root / FIRST / "actions.npy")[8, 0]


def keys(function):
    """Rename the entries of a camera file."""

    def change(folder):
        path = folder / "view10" / "camera_params.json"
        entries = json.loads(path.read_text())
        path.write_text(json.dumps(dict(function(i, entry) for i, entry in enumerate(entries.values()))))

    return change


def test_keys_may_count_steps_or_pictures(root):
    wanted = [f.views["view10"].world_from_camera for f in ActionImagesLayout(str(root))[0].frames]
    keys(lambda i, entry: (str(4 * i), entry))(root / FIRST)
    found = [f.views["view10"].world_from_camera for f in ActionImagesLayout(str(root))[0].frames]
    assert np.array_equal(wanted, found)
    assert not np.array_equal(found[0], found[1])


def shorten(folder):
    np.save(folder / "actions.npy", np.load(folder / "actions.npy")[:9])


def short_video(folder):
    (folder / "view0" / "rgb" / "video.mp4").write_bytes(write_video(pictures(3), 5.0))


def truncate(folder):
    path = folder / "view0" / "rgb" / "video.mp4"
    path.write_bytes(path.read_bytes()[:-600])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, r"video.mp4 has 4 pictures for the 9 actions of actions.npy"),
        (short_video, r"video.mp4 has 3 pictures for the 14 actions .* \(every: ...\)"),
        (truncate, r"video.mp4: no readable video .*; copy it again"),
        (lambda f: (f / "view0" / "rgb" / "video.mp4").unlink(), r"video.mp4: .*No such file"),
        (lambda f: (f / "actions.npy").unlink(), r"actions.npy cannot be read"),
        (lambda f: np.save(f / "actions.npy", np.zeros((4, 7))), r"actions.npy has shape \(4, 7\), expected"),
        (
            lambda f: np.save(f / "actions.npy", np.full((14, 8), np.nan)),
            r"actions.npy, frame 0: .* not finite",
        ),
        (
            lambda f: np.save(f / "actions.npy", np.array([{}])),
            r"actions.npy cannot be read .*it holds values of type object",
        ),
        (keys(lambda i, e: (f"{2 * i:04d}", e)), r"camera_params.json has 4 cameras and none for \[1, 3\]"),
        (keys(lambda i, e: (str(i), {"intrinsics": e["intrinsics"]})), r"'extrinsics' must be a 4x4 matrix"),
        (keys(lambda i, e: (str(i), {**e, "intrinsics": [[1, 2]]})), r"'intrinsics' must be a 3x3 matrix"),
        (lambda f: (f.parents[1] / "variation_descriptions.pkl").unlink(), "descriptions.pkl cannot be read"),
        (
            lambda f: (f / "camera_names.json").write_text('{"view0": "front", "view7": "top"}'),
            r"camera_names.json: {'view7': 'top'} names no folder of \['view0', 'view10'\]",
        ),
    ],
)
def test_damage_is_named(change, message, root):
    change(root / FIRST)
    with pytest.raises(ValueError, match=message):
        list(ActionImagesLayout(str(root))[0].frames)


def test_a_declared_rate_needs_enough_actions(root):
    with pytest.raises(
        ValueError, match=r"4 pictures, one for every 5 actions, but actions\.npy has only 14"
    ):
        ActionImagesLayout(str(root), every=5)[0]


def test_unknown_cameras_and_empty_folders_are_named(root, tmp_path):
    with pytest.raises(
        ValueError, match=r"has the views \['view0', 'view10'\], `views` asks for \['view7'\]"
    ):
        ActionImagesLayout(str(root), views={"view7": "front"})[0]
    with pytest.raises(ValueError, match="holds no episodes; expected"):
        ActionImagesLayout(str(tmp_path / "empty"))


def test_what_is_exported_reads_back(tmp_path, capsys):
    squares = MovingSquares(episodes=3, frames=9, size=(24, 32), hz=20.0)
    write_shards(squares, str(tmp_path / "shards"), 2, workers=0, encoding=VideoEncoding(lossless=True))
    options = [f"--shards={tmp_path / 'shards'}", f"--out={tmp_path / 'out'}", "--lossless=true"]
    main(["export", "--to=action_images", *options])
    assert "3 episodes in the layout 'action_images'" in capsys.readouterr().out
    source = ActionImagesLayout(str(tmp_path / "out"))  # the exported folders say their cameras' names
    assert len(source) == 3
    for index in range(3):
        wanted = list(squares[index].frames)[::4]
        episode = source[index]
        assert (episode.hz, episode.instructions) == (5.0, squares[index].instructions)
        for found, true in zip(episode.frames, wanted, strict=True):
            assert np.allclose(found.action, true.action)
            for name, view in true.views.items():
                assert np.array_equal(found.views[name].image, view.image)
                assert np.allclose(found.views[name].intrinsics, view.intrinsics)
                assert np.allclose(found.views[name].world_from_camera, view.world_from_camera)
    folder = tmp_path / "out/task/variation0/episodes/episode0"
    entry = json.loads((folder / "view0" / "camera_params.json").read_text())
    assert np.load(folder / "key_frames.npy").tolist() == list(range(1, 9))  # the squares open and close
    assert list(entry) == ["0000", "0001", "0002"]
    assert entry["0000"]["intrinsics"][0][0] == -32  # as RLBench writes it
    with pytest.raises(SystemExit, match="exists; export into a new folder"):
        main(["export", "--to=action_images", *options])


def test_variations_are_distinguished_by_their_words(tmp_path):
    writer = ActionImagesWriter(tmp_path, VideoEncoding(gop=12))
    squares = MovingSquares(episodes=1, frames=5, size=(16, 16), hz=20.0, views=("front",))[0]
    frames = list(squares.frames)
    for words, variation in (("red", 4), ("blue", 4), ("red", 4)):
        writer.write(Episode("e", frames, (words,), 20.0, {"task": "reach", "variation": variation}))
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/*/*"))
    assert names == [
        "reach/variation4/episodes/episode0",
        "reach/variation4/episodes/episode1",
        "reach/variation5/episodes/episode0",
    ]


@pytest.mark.parametrize(
    ("squares", "message"),
    [
        (MovingSquares(1, 4, (16, 16), hz=5.0), r"has 5 Hz; this layout holds actions at 20 Hz"),
        (MovingSquares(1, 4, (16, 16), hz=20.0, actions=False), r"frame 0 has no action"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(squares, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ActionImagesWriter(tmp_path, VideoEncoding()).write(squares[0])


def export(shards, out):
    main(["export", "--to=action_images", f"--shards={shards}", f"--out={out}", "--lossless=true"])


def test_released_data_goes_through_shards_and_back(root, tmp_path):
    """Also the three actions between pictures, key frames that no rule explains, and view10 under a name."""
    names = {"view10": "left_shoulder", "view0": "front"}
    (root / "close_jar/variation10").rename(root / "dense")  # has no view10
    source = ActionImagesLayout(str(root), views=names)
    write_shards(
        source, tmp_path / "shards", workers=0, encoding=VideoEncoding(lossless=True), progress=False
    )
    export(tmp_path / "shards", tmp_path / "out")
    wanted, found = root / FIRST, tmp_path / "out" / FIRST
    for name in ("actions.npy", "key_frames.npy"):
        assert np.array_equal(np.load(found / name), np.load(wanted / name)), name
    assert np.load(found / "actions.npy").shape == (14, 8)
    assert json.loads((found / "camera_names.json").read_text()) == names
    for view in names:
        pictures = [f / view / "rgb" / "video.mp4" for f in (found, wanted)]
        assert np.array_equal(*(decode_frames(path.read_bytes()) for path in pictures))
        new, old = (json.loads((f / view / "camera_params.json").read_text()) for f in (found, wanted))
        assert list(new) == list(old)
        assert np.allclose(new["0003"]["extrinsics"], old["0003"]["extrinsics"], atol=1e-6)
    again = ActionImagesLayout(str(tmp_path / "out"))
    assert list(next(iter(again[0].frames)).views) == ["front", "left_shoulder"]


def test_a_picture_at_every_step_keeps_its_key_frames(root, tmp_path):
    dense = root / "close_jar/variation10/episodes/episode0"
    np.save(dense / "key_frames.npy", np.array([2, 9]))
    (root / "close_jar/variation3").rename(root / "sparse")
    write_shards(ActionImagesLayout(str(root)), tmp_path / "shards", workers=0, progress=False)
    export(tmp_path / "shards", tmp_path / "out")
    found = tmp_path / "out/close_jar/variation10/episodes/episode0"
    assert np.load(found / "key_frames.npy").tolist() == [2, 9]
    steps, true = np.load(found / "actions.npy"), np.load(dense / "actions.npy")
    true[:, 3:7] *= np.sign((true * steps)[:, 3:7].sum(axis=1, keepdims=True))  # q and -q are one rotation
    assert np.allclose(steps, true, atol=1e-6)


def test_changed_actions_are_not_replaced_by_the_kept_ones(root, tmp_path):
    episode = ActionImagesLayout(str(root))[0]
    frames = [replace(frame, action=frame.action + np.eye(8)[0]) for frame in episode.frames]
    with pytest.raises(ValueError, match="other actions than those kept"):
        ActionImagesWriter(tmp_path / "out", VideoEncoding()).write(replace(episode, frames=frames))
