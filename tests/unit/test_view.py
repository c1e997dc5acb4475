"""`ai-wam view`: what it reads, and that Rerun's own reader finds the episode in what it writes."""

import importlib.util
import io
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.cli.errors import Ended
from ai_wam.cli.view import view
from ai_wam.cli.view_inputs import scenes_of
from ai_wam.episodes import Frame, View
from ai_wam.errors import UserError
from ai_wam.types import ActionChunk, Batch, Clip
from ai_wam.video import to_uint8
from ai_wam.viewing.rerun_recording import SceneWriter, recording_of
from ai_wam.viewing.scene import PredictedChunk, Scene, ShownFrame
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import HoldStill
from benchmarks.simulators.tabletop.simulator import Tabletop
from benchmarks.speed.moving_squares import MovingSquares
from benchmarks.trial_datamodule import TrialDataModule
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet
from tasks.evaluation.prediction_writer import ActionWriter, sample_files
from tasks.fixed_policy import FixedPolicy

WITH_RERUN = importlib.util.find_spec("rerun") is not None
needs_rerun = pytest.mark.skipif(not WITH_RERUN, reason="needs the extra view: rerun-sdk is not installed")
SQUARES = MovingSquares(episodes=2, frames=6, size=(48, 64), hz=20.0, views=("front", "wrist"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "shards"
    write_shards(SQUARES, folder, workers=0, progress=False)
    return folder


class Logged:
    """Rows of a .rrd file as Rerun's reader gives them, without anything of ours."""

    def __init__(self, file: Path) -> None:
        from rerun.chunk import RrdReader

        reader = RrdReader(file)
        self.rows: dict[tuple[str, str], list[tuple[float, list]]] = {}
        for chunk in reader.stream().to_chunks():
            table = chunk.to_record_batch().to_pydict()
            times = table.get("seconds", [None] * chunk.num_rows)
            for name, column in table.items():
                rows = self.rows.setdefault((chunk.entity_path, name), [])
                pairs = zip(times, column, strict=True)
                rows += [(_seconds(time), cell) for time, cell in pairs if cell is not None]
        for rows in self.rows.values():
            rows.sort(key=lambda row: row[0])

    def at(self, entity: str, component: str, seconds: float) -> list:
        """The latest value at a time, as the viewer takes it."""
        return [cell for time, cell in self.rows[entity, component] if time <= seconds + 1e-6][-1]

    def project(self, camera: str, point: np.ndarray, seconds: float) -> np.ndarray:
        """A world point's pixels through what was logged; matrices lie there column by column."""
        rotation = np.array(self.at(camera, "Transform3D:mat3x3", seconds)[0]).reshape(3, 3).T
        position = np.array(self.at(camera, "Transform3D:translation", seconds)[0])
        k = np.array(self.at(camera, "Pinhole:image_from_camera", seconds)[0]).reshape(3, 3).T
        x, y, depth = k @ (rotation.T @ (point - position))
        return np.array([x / depth, y / depth])

    def picture(self, entity: str, seconds: float) -> np.ndarray:
        blob = self.at(entity, "EncodedImage:blob", seconds)[0]
        return np.asarray(Image.open(io.BytesIO(bytes(blob))))


def _seconds(time) -> float:
    return -np.inf if time is None else time.total_seconds()


def projected(camera: View, point: np.ndarray) -> np.ndarray:
    """By our own cameras."""
    ours = Cameras(
        torch.from_numpy(camera.intrinsics).double(), torch.from_numpy(camera.world_from_camera).double()
    )
    found = ours.project(torch.from_numpy(point)[None], (camera.image.shape[0], camera.image.shape[1]))
    return found.pixels[0].numpy()


@needs_rerun
def test_cameras_pictures_and_poses_are_those_of_the_shards(shards, tmp_path, capsys):
    view(str(shards), out=str(tmp_path / "x.rrd"), episodes="0-1")
    assert "2 of 2: squares-0000, squares-0001" in capsys.readouterr().out
    logged, point = Logged(tmp_path / "x.rrd"), np.array([0.21, -0.13, 0.4])
    episode = ShardSet(shards)[1]
    for frame in episode.frames:
        for name, camera in frame.views.items():
            entity = f"/squares-0001/world/cameras/{name}"
            apart = logged.project(entity, point, frame.seconds) - projected(camera, point)
            assert np.abs(apart).max() < 1e-3
            assert logged.at(entity, "Pinhole:resolution", frame.seconds) == [[64, 48]]
            assert logged.at(entity, "Pinhole:camera_xyz", frame.seconds) == [
                [3, 2, 5]
            ]  # right, down, forward
            np.testing.assert_array_equal(logged.picture(f"{entity}/picture", frame.seconds), camera.image)
        tool = "/squares-0001/world/recorded/tool"
        np.testing.assert_allclose(
            logged.at(tool, "Transform3D:translation", frame.seconds)[0], frame.action[:3], atol=1e-6
        )
        np.testing.assert_allclose(
            logged.at(tool, "Transform3D:quaternion", frame.seconds)[0], frame.action[3:7], atol=1e-6
        )
        openness = logged.at("/squares-0001/openness/recorded", "Scalars:scalars", frame.seconds)
        assert openness == [frame.action[7]]
    still = logged.rows["/squares-0001/world/cameras/front", "Pinhole:image_from_camera"]
    assert len(still) == 1  # logged where it changes
    steps = [cell for _, cell in logged.rows["/squares-0001/openness/recorded", "step"]]
    assert steps == list(range(7))


@needs_rerun
def test_the_action_image_is_the_tokenizers_and_its_red_point_is_the_tool(shards, tmp_path):
    view(str(shards), out=str(tmp_path / "x.rrd"))
    logged, frame = Logged(tmp_path / "x.rrd"), next(iter(ShardSet(shards)[0].frames))
    camera = frame.views["front"]
    cameras = Cameras(
        torch.from_numpy(camera.intrinsics)[None, None, None],
        torch.from_numpy(camera.world_from_camera)[None, None, None],
    )
    action = torch.from_numpy(frame.action).float()[None, None]
    drawn = ActionImageTokenizer().encode(action, cameras, (48, 64))
    shown = logged.picture("/squares-0000/world/cameras/front/action_image", 0.0)
    np.testing.assert_array_equal(shown, to_uint8(2 * drawn[0, 0, :, 0] - 1))
    pixel = logged.project("/squares-0000/world/cameras/front", frame.action[:3], 0.0)
    row, column = np.unravel_index(shown[..., 0].argmax(), shown.shape[:2])
    assert np.abs([column + 0.5 - pixel[0], row + 0.5 - pixel[1]]).max() <= 0.5  # centres of pixels


@needs_rerun
def test_negative_focal_lengths_and_lost_calibrations(tmp_path):
    """RLBench's cameras are turned; one whose calibration is lost disappears until it is back."""
    seen = next(iter(SQUARES[0].frames)).views["front"]
    k, pose = Cameras(
        torch.from_numpy(seen.intrinsics), torch.from_numpy(seen.world_from_camera)
    ).to_rlbench()
    negative = replace(seen, intrinsics=k.numpy(), world_from_camera=pose.numpy())
    lost = replace(seen, world_from_camera=np.full((4, 4), np.nan))
    frames = [
        ShownFrame(Frame({"front": each}, None, i / 10)) for i, each in enumerate([negative, lost, seen])
    ]
    with recording_of("test") as recording:
        recording.save(tmp_path / "x.rrd")
        writer = SceneWriter(recording)
        writer.write(Scene("a b", "", 10.0, frames, 3))
        writer.finish()
    logged, point = Logged(tmp_path / "x.rrd"), np.array([0.21, -0.13, 0.4])
    entity = r"/a\ b/world/cameras/front"
    assert negative.intrinsics[0, 0] < 0 < logged.at(entity, "Pinhole:image_from_camera", 0.0)[0][0]
    for seconds in (0.0, 0.2):
        assert np.abs(logged.project(entity, point, seconds) - projected(negative, point)).max() < 1e-3
    assert [time for time, _ in logged.rows[entity, "Clear:is_recursive"]] == [0.1]


@needs_rerun
def test_predicted_actions_lie_at_their_times_with_their_deviations(tmp_path):
    actions = np.tile([0.1, 0.2, 0.3, 0, 0, 0, 1, 0.5], (3, 1))
    actions[:, 0] += [0, 0.1, 0.2]
    chunk = PredictedChunk(0.5, 0.2, actions, np.array([True, False, True]), np.array([0.01, np.inf, 0.02]))
    with recording_of("test") as recording:
        recording.save(tmp_path / "x.rrd")
        writer = SceneWriter(recording)
        writer.write(Scene("s", "go", 20.0, (), 0, (chunk,)))
        writer.finish()
    logged = Logged(tmp_path / "x.rrd")
    tool = logged.rows["/s/world/predicted/tool", "Transform3D:translation"]
    assert [time for time, _ in tool] == pytest.approx([0.7, 0.9, 1.1])
    np.testing.assert_allclose([cell[0] for _, cell in tool], actions[:, :3], atol=1e-6)
    assert [cell for _, cell in logged.rows["/s/openness/predicted", "step"]] == [14, 18, 22]
    np.testing.assert_allclose(
        logged.at("/s/world/predicted/std", "Ellipsoids3D:half_sizes", 0.5), [[0.01] * 3, [0.02] * 3]
    )
    with pytest.raises(IndexError):
        logged.at("/s/world/predicted/path", "LineStrips3D:strips", 0.4)


@needs_rerun
def test_jpeg_is_smaller_and_existing_files_stay(shards, tmp_path, capsys):
    view(str(shards), out=str(tmp_path / "exact.rrd"))
    view(str(shards), out=str(tmp_path / "small.rrd"), jpeg=60)
    logged = Logged(tmp_path / "small.rrd")
    truth = next(iter(ShardSet(shards)[0].frames)).views["front"].image.astype(int)
    shown = logged.picture("/squares-0000/world/cameras/front/picture", 0.0)
    assert 0 < np.abs(shown - truth).mean() < 5
    with pytest.raises(UserError, match=r"small\.rrd exists; name another file"):
        view(str(shards), out=str(tmp_path / "small.rrd"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["exact.rrd", "small.rrd"]


@needs_rerun
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "x.mp4"}, r"--out is 'x\.mp4'; Rerun opens files by their ending, so name it x\.rrd"),
        ({"jpeg": 0}, "jpeg must be finite and at least 1 and at most 100, got 0"),
        ({"episodes": 9}, "has the episodes 0 to 1, `episodes` asks for 9"),
        ({}, r"no display for the viewer: write a file with --out scenes\.rrd"),
    ],
)
def test_what_cannot_be_shown_is_refused(shards, given, message, monkeypatch, tmp_path):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    out = {} if not given else {"out": "y.rrd"}
    with pytest.raises(UserError, match=message):
        view(str(shards), **{**out, **given})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_sentence(shards, monkeypatch, capsys, tmp_path):
    from ai_wam.cli import main

    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(Ended):
        main(["view", str(shards), "--out", str(tmp_path / "x.rrd")])
    assert capsys.readouterr().err == (
        "ai-wam view: `ai-wam view` needs rerun-sdk: pip install 'ai-wam[view]'\n"
    )


def test_unknown_inputs_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("nothing")
    (tmp_path / "sweep" / "light").mkdir(parents=True)
    (tmp_path / "sweep" / "light" / "results.json").write_text("{}")
    known = r"a folder of shards \(index\.json\), of a test \(results\.json\) or of predictions"
    for name, message in {
        "gone": f"gone is not there; name {known}",
        "empty": f"empty is empty; name {known}",
        "other": f"other holds nothing that `ai-wam view` shows; name {known}",
        "other/notes.txt": f"notes.txt is nothing that `ai-wam view` shows; name {known}",
        "sweep": r"sweep holds 1 tests; name the folder of one, such as \S+/sweep/light",
    }.items():
        with pytest.raises(UserError, match=message):
            scenes_of(str(tmp_path / name))


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_a_trial_of_a_test_comes_back_with_cameras_poses_and_chunks(tmp_path):
    """The recorded cameras put the tool where the recorded picture's own simulator has it."""
    world, clip = Tabletop(rig="framed", image_size=(64, 96)), Clip(size=(32, 32))
    rules = EvaluationProtocol(max_seconds=0.5, trials_per_task=2, tasks=("reach_target",))
    data = TrialDataModule(
        Benchmark(world, rules, parallel=1), clip, out=tmp_path, videos=1, references=False
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "old.npz").write_bytes(b"of an earlier test")
    Trainer(accelerator="cpu", enable_model_summary=False, **quiet).test(
        FixedPolicy(HoldStill(), clip), datamodule=data, verbose=False
    )
    scenes = scenes_of(str(tmp_path / "results.json"))
    trial = data.trials[0]
    assert scenes.names == [trial.id]
    assert [file.stem for file in (tmp_path / "recordings").iterdir()] == [trial.id]
    scene = scenes.read(0)
    frames = list(scene.frames)
    assert len(frames) == scene.count == 6  # 10 pictures per second, and the first one
    prompts = world.reset(trial)
    assert scene.instruction == prompts[trial.seed % len(prompts)]
    truth = world.observe(clip.views)
    np.testing.assert_allclose(frames[0].frame.action, truth.action)
    for name in clip.views:
        shown, given = frames[0].frame.views[name], truth.views[name]
        assert shown.image.shape == (160, 160, 3)
        # The middle 64 of 96 columns, enlarged to 160 pixels.
        wanted = (projected(given, truth.action[:3]) - [16, 0]) * 160 / 64
        np.testing.assert_allclose(projected(shown, truth.action[:3]), wanted, atol=1e-6)
        crop = np.asarray(
            Image.fromarray(given.image[:, 16:80]).resize((160, 160), Image.Resampling.BILINEAR)
        )
        assert np.abs(shown.image.astype(int) - crop).mean() < 6  # the video is compressed
    assert [frame.frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    (chunk,) = scene.chunks
    assert (chunk.seconds, chunk.position_std.tolist()) == (0.0, [0.0])
    np.testing.assert_allclose(chunk.actions[0], truth.action, atol=1e-6)  # it holds still


def test_results_without_recordings_say_so(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("{}")
    known = {"trials": [{"id": "test-reach_target-v00-00000"}]}
    monkeypatch.setattr("ai_wam.cli.view_inputs.read_results", lambda path: known)
    with pytest.raises(UserError, match=r"results of 1 trials and recordings of none.* --data\.videos"):
        scenes_of(str(tmp_path))


def clip_of_squares() -> tuple[Batch, ActionChunk]:
    """A sample of two views as `ai-wam predict` has it, and actions along x."""
    frame = next(iter(SQUARES[0].frames))
    steps, views = 3, list(frame.views.values())
    video = torch.stack([torch.from_numpy(each.image).permute(2, 0, 1) / 127.5 - 1 for each in views])
    video = video[None, :, :, None].repeat(1, 1, 1, steps, 1, 1).float()
    k = torch.stack([torch.from_numpy(each.intrinsics) for each in views]).float()
    pose = torch.stack([torch.from_numpy(each.world_from_camera) for each in views]).float()
    cameras = Cameras(
        k[None, :, None].repeat(1, 1, steps, 1, 1), pose[None, :, None].repeat(1, 1, steps, 1, 1)
    )
    actions = torch.from_numpy(frame.action).float().repeat(1, steps, 1)
    actions[0, :, 0] += torch.tensor([0, 0.01, 0.02])
    known = torch.ones(1, steps, dtype=torch.bool)
    batch = Batch(
        *(video, cameras, torch.tensor([[True, True]]), known, known, actions, known),
        *(("go",), ("squares-0000@2",)),
    )
    images = 2 * ActionImageTokenizer().encode(actions, cameras, SQUARES.size) - 1
    sure = torch.ones(1, steps - 1, dtype=torch.bool)
    std = torch.tensor([[0.001, 0.002]])
    return batch, ActionChunk(actions[:, 1:], sure, sure * 0.9, 0.05, {"action_images": images}, std)


def test_a_sample_of_own_pictures_comes_back(tmp_path):
    batch, chunk = clip_of_squares()
    (tmp_path / "sample").mkdir()
    for name, data in sample_files(batch, chunk, 0, SQUARES.views).items():
        (tmp_path / "sample" / name).write_bytes(data)
    scene = scenes_of(str(tmp_path)).read(0)
    frames = list(scene.frames)
    assert (scene.name, scene.instruction, len(frames), scene.count) == ("sample", "go", 3, 3)
    truth = next(iter(SQUARES[0].frames))
    for name, given in truth.views.items():
        np.testing.assert_array_equal(frames[0].frame.views[name].image, given.image)
        np.testing.assert_allclose(frames[0].frame.views[name].intrinsics, given.intrinsics)
        drawn = to_uint8(chunk.generated["action_images"][0, list(truth.views).index(name), :, 1])
        shown = frames[1].generated[name]["generated_action_image"]
        assert np.abs(shown.astype(int) - drawn).mean() < 3  # the video is compressed
    np.testing.assert_allclose(frames[0].frame.action, truth.action)
    assert frames[1].frame.action is None
    np.testing.assert_allclose(scene.chunks[0].actions, chunk.actions[0])
    np.testing.assert_allclose(scene.chunks[0].position_std, [0.001, 0.002])
    np.testing.assert_allclose(scene.chunks[0].due, [0.05, 0.1])


def test_predictions_on_shards_lie_in_the_recording_they_were_made_on(shards, tmp_path):
    batch, chunk = clip_of_squares()
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    ActionWriter(tmp_path).write_on_batch_end(trainer, FixedPolicy(HoldStill()), chunk, None, batch, 0, 0)
    bare = scenes_of(str(tmp_path)).read(0)
    assert (bare.name, list(bare.frames), bare.chunks[0].seconds) == ("squares-0000", [], 0.0)
    scene = scenes_of(str(tmp_path), str(shards)).read(0)
    assert scene.chunks[0].seconds == pytest.approx(2 / 20)
    np.testing.assert_allclose(scene.chunks[0].position_std, [0.001, 0.002])
    (third,) = islice(scene.frames, 2, 3)
    truth = list(SQUARES[0].frames)[2]
    np.testing.assert_allclose(third.frame.action, truth.action)
    foreign = replace(batch, keys=("gone@0",))
    ActionWriter(tmp_path / "p").write_on_batch_end(
        trainer, FixedPolicy(HoldStill()), chunk, None, foreign, 0, 0
    )
    with pytest.raises(UserError, match="no episode 'gone'"):
        scenes_of(str(tmp_path / "p"), str(shards))
