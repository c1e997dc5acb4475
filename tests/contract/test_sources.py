"""Every source with a YAML keeps the contract; a new one is found by its file name.

`configs/convert/<name>.yaml` is read on what `tests/source_fixtures/<name>.py` writes, and compared with
poses and pixels that the fixture computed by hand; `<name>__<variant>.py` writes another form of the layout.
"""

import pickle
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from source_fixtures.truth import TrueEpisode, Truth

from ai_wam.cameras import Cameras
from ai_wam.cli import main
from ai_wam.cli.configs import instantiate
from ai_wam.poses import geodesic_angle, rotation_from_quaternion
from ai_wam.types import Episode, EpisodeSource, Frame
from datamodules.shard_reader import ShardSet

TESTS = Path(__file__).parents[1]
YAMLS = sorted((TESTS.parent / "configs" / "convert").glob("*.yaml"))
FIXTURES = [
    (file, fixture.stem)
    for file in YAMLS
    for fixture in sorted((TESTS / "source_fixtures").glob(f"{file.stem}*.py"))
    if fixture.stem == file.stem or fixture.stem.startswith(f"{file.stem}__")  # variants of a layout
]
METRES, RADIANS, PIXELS = 1e-4, 1e-4, 0.01


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda pair: pair[1])
def pair(request: pytest.FixtureRequest) -> tuple[Path, str]:
    return request.param


@pytest.fixture(scope="module")
def yaml_file(pair: tuple[Path, str]) -> Path:
    return pair[0]


@pytest.fixture(scope="module")
def truth(pair: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return import_module(f"source_fixtures.{pair[1]}").write(tmp_path_factory.mktemp(pair[1]))


@pytest.fixture(scope="module")
def source(yaml_file: Path, truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> EpisodeSource:
    settings = yaml.safe_load(yaml_file.read_text())["source"]
    settings["init_args"] = {**settings.get("init_args", {}), **truth.init_args}
    file = tmp_path_factory.mktemp("yaml") / yaml_file.name
    file.write_text(yaml.safe_dump(settings))
    return instantiate(str(file), EpisodeSource)


def test_every_yaml_has_a_fixture():
    assert {file for file, _ in FIXTURES} == set(YAMLS)


def both(source: EpisodeSource, truth: Truth) -> list[tuple[Episode, TrueEpisode]]:
    assert isinstance(source, EpisodeSource)
    assert len(source) == len(truth.episodes)
    return [(source[i], wanted) for i, wanted in enumerate(truth.episodes)]


def test_names_rate_and_words(source: EpisodeSource, truth: Truth):
    pairs = both(source, truth)
    for episode, wanted in pairs:
        assert (episode.key, episode.hz, episode.instructions) == (wanted.key, wanted.hz, wanted.instructions)
        assert episode.provenance["source"]
    assert len({episode.key for episode, _ in pairs}) == len(pairs)


def test_poses_agree_with_the_computation_by_hand(source: EpisodeSource, truth: Truth):
    for episode, wanted in both(source, truth):
        frames = list(episode.frames)
        assert np.allclose([frame.seconds for frame in frames], np.arange(len(frames)) / wanted.hz)
        if wanted.actions is None:
            assert all(frame.action is None for frame in frames)
            continue
        actions = np.stack([frame.action for frame in frames])
        assert actions.shape == wanted.actions.shape
        assert np.allclose(np.linalg.norm(actions[:, 3:7], axis=1), 1, atol=1e-6)
        assert np.abs(actions[:, :3] - wanted.actions[:, :3]).max() <= METRES
        found, true = (
            rotation_from_quaternion(torch.from_numpy(a[:, 3:7])) for a in (actions, wanted.actions)
        )
        assert geodesic_angle(found, true).max() <= RADIANS
        assert np.abs(actions[:, 7] - wanted.actions[:, 7]).max() <= 1e-6


def test_pixels_agree_with_the_computation_by_hand(source: EpisodeSource, truth: Truth):
    for episode, wanted in both(source, truth):
        for number, frame in enumerate(episode.frames):
            assert set(frame.views) == set(wanted.images)
            for name, pixels in wanted.pixels.items():
                assert frame.action is not None
                found = project(frame, name)
                assert np.abs(found - pixels[number]).max() <= PIXELS, (episode.key, name, number)


def project(frame: Frame, name: str) -> np.ndarray:
    view, point = frame.views[name], torch.from_numpy(frame.action[None, :3]).double()
    cameras = Cameras(torch.from_numpy(view.intrinsics), torch.from_numpy(view.world_from_camera))
    return cameras.to(torch.float64).project(point, view.image.shape[:2]).pixels[0].numpy()


def test_cameras_are_right_handed_and_look_forward(source: EpisodeSource, truth: Truth):
    for episode, _ in both(source, truth):
        for view in (view for frame in episode.frames for view in frame.views.values()):
            k, rotation = view.intrinsics, view.world_from_camera[:3, :3]
            if np.isnan(k).all() or np.isnan(rotation).all():
                continue  # a lost calibration, which a format may say
            assert k[0, 0] > 0
            assert k[1, 1] > 0
            assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
            assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)


def test_pictures_are_the_recorded_ones(source: EpisodeSource, truth: Truth):
    for episode, wanted in both(source, truth):
        for number, frame in enumerate(episode.frames):
            for name, view in frame.views.items():
                assert view.image.dtype == np.uint8
                off = np.abs(view.image.astype(float) - wanted.images[name][number]).mean()
                assert off <= truth.levels, (episode.key, name, number)


def test_an_episode_depends_on_its_number_alone(source: EpisodeSource, truth: Truth):
    copy = pickle.loads(pickle.dumps(source))
    for index in reversed(range(len(truth.episodes))):
        first, second = source[index], copy[index]
        assert first.provenance == second.provenance
        for a, b in zip(first.frames, second.frames, strict=True):
            assert a.seconds == b.seconds
            assert (a.action is None and b.action is None) or np.array_equal(a.action, b.action)
            for name, view in a.views.items():
                assert np.array_equal(view.image, b.views[name].image)
                assert np.array_equal(view.intrinsics, b.views[name].intrinsics, equal_nan=True)
                assert np.array_equal(view.world_from_camera, b.views[name].world_from_camera, equal_nan=True)


def test_the_shipped_command_converts_it(yaml_file: Path, truth: Truth, tmp_path: Path):
    options = [f"--source.init_args.{key}={value}" for key, value in truth.init_args.items()]
    main(["convert", "--config", str(yaml_file), *options, f"--out={tmp_path / 'out'}", "--workers=0"])
    shards = ShardSet(tmp_path / "out")
    assert [entry.key for entry in shards.episodes] == [wanted.key for wanted in truth.episodes]
    for index, wanted in enumerate(truth.episodes):
        found = shards.header(index).actions
        assert (found is None) == (wanted.actions is None)
        if wanted.actions is not None:
            assert np.allclose(found[:, :3], wanted.actions[:, :3], atol=METRES)
