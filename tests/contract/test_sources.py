"""Every source with a YAML keeps the contract; a new one is found by its file name.

`configs/convert/<name>.yaml` is read on what `tests/source_fixtures/<name>.py` writes, and compared with
poses and pixels that the fixture computed by hand; `<name>__<variant>.py` writes another form of the layout.
"""

import pickle
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from source_fixtures.truth import TrueEpisode, Truth

from ai_wam.cameras import Cameras
from ai_wam.cli import main
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.episodes import Episode, EpisodeSource, Frame
from ai_wam.files.atomic import as_path
from ai_wam.poses import geodesic_angle, rotation_from_quaternion
from datamodules.shards.reader import ShardSet

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
def root(pair: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(pair[1])


@pytest.fixture(scope="module")
def truth(pair: tuple[Path, str], root: Path) -> Truth:
    return import_module(f"source_fixtures.{pair[1]}").write(root)


@pytest.fixture(scope="module")
def source(yaml_file: Path, truth: Truth) -> EpisodeSource:
    return load(yaml_file, truth.init_args)


def load(yaml_file: Path, init_args: dict[str, object]) -> EpisodeSource:
    settings = yaml.safe_load(yaml_file.read_text())["source"]
    settings["init_args"] = {**settings.get("init_args", {}), **init_args}
    return instantiate(settings, EpisodeSource)


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


def test_files_that_a_mac_leaves_beside_others_do_not_count(
    yaml_file: Path, source: EpisodeSource, truth: Truth, root: Path, tmp_path: Path
):
    """On disks of other systems it keeps what they cannot store in a file ._NAME beside every file."""
    copied = Path(shutil.copytree(root, tmp_path / "copied"))
    for path in list(copied.rglob("*")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    moved = {key: str(value).replace(str(root), str(copied)) for key, value in truth.init_args.items()}
    again = load(
        yaml_file, {key: moved[key] if str(root) in str(v) else v for key, v in truth.init_args.items()}
    )
    assert len(again) == len(source)
    for number in range(len(source)):
        assert len(list(again[number].frames)) == len(list(source[number].frames))


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


def convert(yaml_file: Path, init_args: dict[str, object], out: str) -> ShardSet:
    options = [f"--source.init_args.{key}={value}" for key, value in init_args.items()]
    main(["convert", "--config", str(yaml_file), *options, f"--out={out}", "--workers=0"])
    return ShardSet(out)


@pytest.fixture(scope="module")
def shards(yaml_file: Path, truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return convert(yaml_file, truth.init_args, str(tmp_path_factory.mktemp("shards") / "out"))


def test_the_shipped_command_converts_it(shards: ShardSet, truth: Truth):
    assert [entry.key for entry in shards.episodes] == [wanted.key for wanted in truth.episodes]
    for index, wanted in enumerate(truth.episodes):
        found = shards.header(index).actions
        assert (found is None) == (wanted.actions is None)
        if wanted.actions is not None:
            assert np.allclose(found[:, :3], wanted.actions[:, :3], atol=METRES)


def test_a_store_gives_the_same_shards(
    pair: tuple[Path, str], root: Path, truth: Truth, shards: ShardSet, tmp_path: Path
):
    store = f"memory://{pair[1]}"
    for file in (file for file in root.rglob("*") if file.is_file()):
        place = as_path(store) / file.relative_to(root).as_posix()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    there = {key: str(value).replace(str(root), store) for key, value in truth.init_args.items()}
    assert str(root) in truth.init_args["path"]
    root.rename(root.with_name("elsewhere"))  # so that nothing is read here
    try:
        found = convert(pair[0], there, str(tmp_path / "out"))
    finally:
        root.with_name("elsewhere").rename(root)
    files = sorted(file.name for file in (tmp_path / "out").glob("shard-*"))
    assert files == sorted(file.name for file in shards.folder.glob("shard-*"))
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (shards.folder / name).read_bytes()
    assert found.digest == shards.digest


def test_views_are_called_as_the_user_says(yaml_file: Path, source: EpisodeSource, truth: Truth):
    frame = next(iter(source[0].frames))
    first = next(iter(frame.views))
    theirs = f"{truth.notes.get('prefix', '')}{first}"

    def seen_as(views: object) -> EpisodeSource:
        return load(yaml_file, {**truth.init_args, "views": views})

    renamed = seen_as({theirs: "ours"})
    found = next(iter(renamed[0].frames))
    assert list(found.views) == ["ours"]
    assert np.array_equal(found.views["ours"].image, frame.views[first].image)
    before, after = frame.views[first].world_from_camera, found.views["ours"].world_from_camera
    assert np.array_equal(before, after, equal_nan=True)
    assert list(next(iter(seen_as([theirs])[0].frames)).views) == [first]
    with pytest.raises((ValueError, ArgumentError), match="nowhere"):
        seen_as({"nowhere": "ours"})[0]
