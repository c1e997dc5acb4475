"""Labeling recordings: which frames a model sees, what is kept, what the folder and its report say."""

import gc
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ai_wam.canvas import Kind
from ai_wam.cli import main
from ai_wam.cli.shipped_configs import config_path, instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.episodes import Episode, Frame, Labels, View
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet
from tasks.labeled_source import LabeledSource, _Seen, _windows
from tasks.labeling import ActionLabeling
from tasks.policy import PolicyControl

CLIP = Clip(frames=5, stride=2, control_hz=10.0, size=(32, 32), views=("front", "side"))
K = np.array([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]])
FRONT = np.eye(4)
SIDE = np.array([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])


class Recordings:
    """Two moving tools of which nothing but grey pictures is recorded."""

    def __init__(
        self, hz: float = 10.0, views: tuple[str, ...] = ("front", "side"), length: int = 13
    ) -> None:
        self.hz, self.views, self.length = hz, views, length

    def __len__(self) -> int:
        return 2

    def truth(self, index: int, number: int) -> np.ndarray:
        return np.array([0.01 * number - 0.05 * index, 0.02, 1.0, 0, 0, 0, 1, 1], dtype=np.float32)

    def __getitem__(self, index: int) -> Episode:
        poses = {"front": FRONT, "side": SIDE}
        grey = np.full((32, 32, 3), 100, dtype=np.uint8)
        frames = [
            Frame(
                {name: View(grey, K, poses.get(name, FRONT)) for name in self.views}, None, number / self.hz
            )
            for number in range(13)
        ]
        return Episode(f"clip-{index}", frames, ("",), self.hz, {"source": "test"})


class Oracle(ActionLabeling):
    """Draws the true actions of the frames it is asked for, so that reading them is all that can go wrong."""

    def generate_videos(self, batch, chosen):
        assert chosen.name == "annotation"
        assert not batch.actions.any()
        rows = []
        for key in batch.keys:
            index, first = (int(part) for part in key.removeprefix("clip-").split("@"))
            numbers = [min(first + 2 * t, 12 - (12 - first) % 2) for t in range(CLIP.frames)]
            rows.append(np.stack([Recordings().truth(index, number) for number in numbers]))
        actions = torch.from_numpy(np.stack(rows))
        return {Kind.ACTION: 2 * self.tokenizer.encode(actions, batch.cameras, CLIP.size) - 1}


@pytest.fixture(scope="module")
def backbone() -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)


@pytest.mark.parametrize(
    ("length", "frames", "step"), [(13, 5, 2), (4, 5, 2), (1, 5, 4), (40, 9, 4), (9, 9, 1)]
)
def test_every_frame_is_seen_in_its_own_rhythm(length: int, frames: int, step: int):
    windows = list(_windows(range(length), frames, step))
    assert all(len(window) == frames for window in windows)
    assert {frame for window in windows for frame in window} == set(range(length))
    for window in windows:
        assert set(np.diff(window)) <= {0, step}
        assert (np.diff(window) == 0).sum() == 0 or window[-1] + step >= length


def test_labels_are_the_actions_of_their_frames(backbone: VideoBackbone):
    source = Recordings()
    labeled = LabeledSource(source, Oracle(backbone, CLIP), {}, batch_size=2)
    for index in range(2):
        episode = labeled[index]
        frames = list(episode.frames)
        assert len(frames) == 13
        for number, frame in enumerate(frames):
            assert frame.action is not None
            np.testing.assert_allclose(frame.action, source.truth(index, number), atol=2e-3)
        assert episode.provenance["labels"] == {"kept": True}
        assert episode.labels.valid.all()
        assert episode.labels.disagreement_px.max() < 0.2
        assert episode.provenance["source"] == "test"


def test_a_labeled_set_exports_its_confidence(backbone: VideoBackbone, tmp_path: Path):
    class Shifted(Oracle):
        """Draws one view two pixels too low, so that the decoder is less sure."""

        def generate_videos(self, batch, chosen):
            images = super().generate_videos(batch, chosen)[Kind.ACTION]
            return {Kind.ACTION: torch.cat([images[:, :1], images[:, 1:].roll(2, -2)], dim=1)}

    labeled = LabeledSource(Recordings(), Shifted(backbone, CLIP), {}, min_confidence=0.0)
    write_shards(labeled, tmp_path / "labeled", workers=0, progress=False)
    main(["export", f"--shards={tmp_path / 'labeled'}", f"--out={tmp_path / 'out'}", "--to=lerobot"])
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-001.parquet")
    said = ShardSet(tmp_path / "labeled").header(1).labels.confidence
    assert 0 < max(said) < 1
    assert table.column("action.confidence").to_pylist() == pytest.approx(said, abs=1e-6)


class Long(Recordings):
    """One recording of 160 frames that counts how many frames are held while it is read."""

    most = 0

    def __getitem__(self, index: int) -> Episode:
        return replace(super().__getitem__(0), frames=self.frames())

    def frames(self) -> Iterator[Frame]:
        first = next(iter(super().__getitem__(0).frames))
        for number in range(160):
            if number % 40 == 0:
                held = sum(type(each) is _Seen for each in gc.get_objects())
                self.most = max(self.most, held)
            yield replace(first, seconds=number / self.hz)


class Absent(ActionLabeling):
    """Draws nothing, in no time."""

    def generate_videos(self, batch, chosen):
        return {Kind.ACTION: torch.full_like(batch.video, -1)}


def test_memory_does_not_grow_with_the_recording(backbone: VideoBackbone):
    source = Long()
    episode = LabeledSource(source, Absent(backbone, CLIP), {}, batch_size=4)[0]
    assert len(episode.labels.valid) == 160
    windows, passes = 4, 2
    assert 0 < source.most <= 2 * (windows + passes) * CLIP.frames


def test_labels_of_older_shards_are_read(tmp_path: Path):
    old = {"kept": True, "valid": [True, False], "confidence": [0.5, 0.0], "disagreement_px": [1.5, None]}

    class Old(Recordings):
        def __getitem__(self, index: int) -> Episode:
            episode = super().__getitem__(index)
            return replace(episode, frames=list(episode.frames)[:2], provenance={"labels": old})

    write_shards(Old(), tmp_path, workers=0, progress=False)
    labels = ShardSet(tmp_path).header(0).labels
    assert labels.valid.tolist() == [True, False]
    assert labels.confidence.tolist() == [0.5, 0]
    assert np.array_equal(labels.disagreement_px, [1.5, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("confidence", "message"),
    [([0.5, 0.5], "have .* frames, the episode has 13"), ([2.0] * 13, "must lie in")],
)
def test_labels_of_other_frames_are_refused(confidence: list[float], message: str, tmp_path: Path):
    labels = Labels(np.ones(len(confidence), bool), np.array(confidence), np.zeros(len(confidence)))

    class Wrong(Recordings):
        def __getitem__(self, index: int) -> Episode:
            return replace(super().__getitem__(index), labels=labels)

    with pytest.raises(ValueError, match=f"episode 'clip-0': labels.*{message}"):
        write_shards(Wrong(), tmp_path, workers=0, progress=False)


def test_too_little_that_is_sure_leaves_an_episode_without_actions(backbone: VideoBackbone):
    task = Oracle(backbone, CLIP)
    strict = LabeledSource(Recordings(), task, {}, min_confidence=1.0)[0]
    assert not strict.provenance["labels"]["kept"]
    assert all(frame.action is None for frame in strict.frames)
    assert LabeledSource(Recordings(), task, {}, 1.0, min_share=0.0)[0].provenance["labels"]["kept"]


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        (Recordings(hz=7.0), "has 7 frames a second, the model's clip 5"),
        (Recordings(views=("wrist",)), r"has views \['wrist'\], the model knows \['front', 'side'\]"),
    ],
)
def test_recordings_that_do_not_fit_are_named(backbone: VideoBackbone, recordings: Recordings, message: str):
    with pytest.raises(ValueError, match=message):
        LabeledSource(recordings, Oracle(backbone, CLIP), {})[0]


def test_models_and_thresholds_that_do_not_fit_are_named(backbone: VideoBackbone):
    with pytest.raises(ValueError, match=r"was trained on the plans policy, .* needs 'annotation'"):
        LabeledSource(Recordings(), PolicyControl(backbone, CLIP), {})
    with pytest.raises(ValueError, match=r"min_share must lie in \[0, 1\], got 1.5"):
        LabeledSource(Recordings(), Oracle(backbone, CLIP), {}, min_share=1.5)


def test_a_worker_elsewhere_reads_the_same(backbone: VideoBackbone):
    labeled = LabeledSource(Recordings(), ActionLabeling(backbone, CLIP, sampling=Sampling(steps=1)), {})
    sent = pickle.loads(pickle.dumps(labeled))
    found, wanted = sent[1].labels, labeled[1].labels
    for name, values in vars(wanted).items():
        assert np.array_equal(getattr(found, name), values, equal_nan=True)
    assert len(wanted.confidence) == 13


def test_a_missing_view_is_left_out(backbone: VideoBackbone):
    source = Recordings(views=("front",))
    labeled = LabeledSource(source, ActionLabeling(backbone, CLIP, sampling=Sampling(steps=1)), {})
    assert len(labeled[0].labels.valid) == 13
    frames = list(source[0].frames)
    mixed = [*frames[:4], replace(frames[4], views={**frames[4].views, "side": frames[4].views["front"]})]
    labeled._source = [replace(source[0], frames=mixed)]
    with pytest.raises(ValueError, match=r"frame 4 has views .*other ones than frame 0"):
        labeled[0]


def test_the_command_writes_labels_and_a_report_and_never_writes_over_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: VideoBackbone,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    write_shards(Recordings(), "raw", workers=0, progress=False)
    save(ActionLabeling(backbone, CLIP, sampling=Sampling(steps=1)), tmp_path / "x.ckpt")
    words = ["label", "--ckpt_path=x.ckpt", "--shards=raw", "--out=labeled"]
    main(words)
    assert "of 2 episodes kept with actions" in capsys.readouterr().out
    report = json.loads((tmp_path / "labeled" / "labels.json").read_text())
    assert (report["episodes"], report["frames"]) == (2, 26)
    shards = ShardSet("labeled")
    assert len(shards) == 2
    header = shards.header(0)
    assert (header.actions is not None) == header.provenance["labels"]["kept"]
    assert len(header.labels.confidence) == 13
    assert shards[0].labels == header.labels  # a set that is written again keeps them
    main(["inspect", "labeled", "--size=32"])
    assert "labels     2 episodes: " in capsys.readouterr().out
    main(words)  # nothing is left to be done
    with pytest.raises(SystemExit, match=r"min_share: 0\.9 != 0\.5"):
        main([*words, "--min_share=0.5"])
    with pytest.raises(SystemExit, match="either --shards FOLDER or --source"):
        main(words[:2] + words[3:])


def save(task: ActionLabeling, file: Path) -> None:
    """As `ai-wam fit` would have saved it."""
    described = yaml.safe_load(config_path("configs/backbone/wan-tiny.yaml").read_text())
    clip = {"frames": 5, "stride": 2, "control_hz": 10.0, "size": [32, 32], "views": ["front", "side"]}
    arguments = {"backbone": described, "clip": clip, "sampling": {"steps": 1}}
    hyper = {"_class_path": "tasks.labeling.ActionLabeling", "_instantiator": "", **arguments}
    torch.save({"hyper_parameters": hyper, "state_dict": task.state_dict()}, file)
