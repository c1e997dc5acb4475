"""The shard format: what is written, what is refused, what an interruption leaves."""

import io
import json
import tarfile
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from ai_wam.episodes import Episode, EpisodeSource
from ai_wam.video import VideoEncoding, decode_frames
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.episode_encoding import encode_episode
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet
from datamodules.shards.source_settings import describe, differences
from datamodules.shards.writer import ShardWriter

SOURCE = MovingSquares(episodes=5, frames=6, size=(32, 48), views=("front", "wrist"))
LOSSLESS = VideoEncoding(lossless=True)


def record(source, folder, per_shard=2, encoding=LOSSLESS, workers=0):
    return write_shards(source, folder, per_shard, workers, encoding, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    record(SOURCE, path)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Changed:
    """The episodes of SOURCE with one frame of one of them changed, or a failure in its place."""

    def __init__(self, episode=0, frame=0, change=None, **fields):
        self.episode, self.frame, self.change, self.fields = episode, frame, change, fields

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, index):
        episode = SOURCE[index]
        if index != self.episode:
            return episode
        return replace(episode, frames=self._frames(episode), **self.fields)

    def _frames(self, episode):
        for number, frame in enumerate(episode.frames):
            yield self.change(frame) if self.change and number == self.frame else frame


def with_action(**entries):
    def change(frame):
        action = frame.action.copy()
        for place, value in entries.items():
            action[int(place[1:])] = value
        return replace(frame, action=action)

    return change


def with_view(name, **fields):
    return lambda frame: replace(frame, views={**frame.views, name: replace(frame.views[name], **fields)})


def test_everything_comes_back(folder):
    shards = ShardSet(folder, verify=True)
    assert isinstance(shards, EpisodeSource)
    assert len(shards) == len(SOURCE)
    for number in range(len(SOURCE)):
        wanted, found = SOURCE[number], shards[number]
        assert (found.key, found.instructions, found.hz) == (wanted.key, wanted.instructions, wanted.hz)
        assert found.provenance == wanted.provenance
        for left, right in zip(wanted.frames, found.frames, strict=True):
            assert right.seconds == left.seconds
            assert np.allclose(right.action, left.action, atol=1e-7)
            for name in SOURCE.views:
                assert np.array_equal(right.views[name].image, left.views[name].image)
                assert np.allclose(right.views[name].intrinsics, left.views[name].intrinsics)
                assert np.allclose(
                    right.views[name].world_from_camera, left.views[name].world_from_camera, atol=1e-6
                )


def test_still_cameras_are_stored_once(folder):
    header = ShardSet(folder).header(0)
    assert len(header.world_from_camera["front"]) == 1
    assert len(header.world_from_camera["wrist"]) == 6


def test_a_plain_webdataset_pipeline_reads_the_tars(folder):
    with ExitStack() as stack:  # WebDataset's own opener leaves closing the files to the garbage collector
        paths = sorted(folder.glob("*.tar"))
        sources = [{"url": str(path), "stream": stack.enter_context(path.open("rb"))} for path in paths]
        samples = list(group_by_keys(tar_file_expander(iter(sources))))
    assert [sample["__key__"] for sample in samples] == [SOURCE[i].key for i in range(5)]
    assert np.load(io.BytesIO(samples[1]["actions.npy"])).shape == (7, 8)
    assert np.array_equal(
        decode_frames(samples[0]["front.mp4"], [3])[0], list(SOURCE[0].frames)[3].views["front"].image
    )
    assert json.loads(samples[4]["json"])["provenance"] == SOURCE[4].provenance


def test_index_says_where_members_lie(folder):
    index = json.loads((folder / "index.json").read_text())
    assert (index["schema"], index["episodes"], index["frames"]) == (1, 5, 6 + 7 + 8 + 6 + 7)
    assert [shard["episodes"] for shard in index["shards"]] == [2, 2, 1]
    for entry in ShardSet(folder).episodes:
        with tarfile.open(folder / entry.file) as tar:
            for name, member in entry.members.items():
                info = tar.getmember(f"{entry.key}.{name}")
                assert (info.offset_data, info.size) == (member.offset, member.size)
                assert (info.mtime, info.uid, info.uname) == (0, 0, "")


def test_bytes_do_not_depend_on_the_workers(folder, tmp_path):
    # A set of shards is a source that worker processes can import, whatever imported this test.
    again, parallel = tmp_path / "again", tmp_path / "parallel"
    record(ShardSet(folder), again)
    record(ShardSet(folder), parallel, workers=2)
    assert contents(again) == contents(parallel)
    assert (again / "shard-000000.tar").read_bytes() == (folder / "shard-000000.tar").read_bytes()


def test_missing_actions_are_a_missing_member(tmp_path):
    record(replace(SOURCE, actions=False), tmp_path)
    shards = ShardSet(tmp_path)
    assert shards.header(0).actions is None
    assert "actions.npy" not in shards.episodes[0].members


def test_interruption_leaves_whole_shards_and_is_resumed(folder, tmp_path):
    def interrupt(frame):
        raise KeyboardInterrupt

    broken = Changed(episode=3, frame=2, change=interrupt)
    with pytest.raises(KeyboardInterrupt):
        record(broken, tmp_path)
    assert sorted(contents(tmp_path)) == ["index.json", "shard-000000.json", "shard-000000.tar"]
    with pytest.raises(ShardError, match=r"unfinished \(1 shards so far\); run the same `ai-wam collect"):
        ShardSet(tmp_path)
    stale = tmp_path / "shard-000001.tar.partial"
    stale.write_bytes(b"half")
    kept = (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    broken.change.__code__ = (lambda frame: frame).__code__  # the same source, no longer interrupted
    record(broken, tmp_path)
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == kept
    assert not stale.exists()
    for number in range(3):
        name = f"shard-{number:06d}.tar"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert len(ShardSet(tmp_path, verify=True)) == 5


def test_a_deleted_shard_is_written_again(folder, tmp_path):
    record(SOURCE, tmp_path)
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000001.tar is missing"):
        ShardSet(tmp_path)
    record(SOURCE, tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_another_recording_is_refused(folder):
    before = contents(folder)
    with pytest.raises(ShardError, match=r"source.settings.hz: 20.0 != 10.0") as refusal:
        record(replace(SOURCE, hz=10.0), folder)
    assert "Collect into a new folder" in str(refusal.value)
    with pytest.raises(ShardError, match=r"episodes_per_shard: 2 != 3"):
        record(SOURCE, folder, per_shard=3)
    with pytest.raises(ShardError, match=r"video.lossless: True != False"):
        record(SOURCE, folder, encoding=VideoEncoding())
    assert contents(folder) == before


def test_foreign_tars_are_not_taken_for_ours(tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"holds shard-000000\.tar but no index\.json"):
        record(SOURCE, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            Changed(1, 3, with_action(_2=np.nan)),
            r"episode 'squares-0001', frame 3: action .*nan.* is not finite",
        ),
        (Changed(0, 2, with_action(_4=0.9)), r"frame 2: quaternion .* length 0.9, expected 1"),
        (Changed(0, 0, with_action(_7=1.2)), r"openness 1.2 lies outside \[0, 1\]"),
        (Changed(0, 1, lambda f: replace(f, action=None)), "frame 1 has no action, others have"),
        (
            Changed(0, 1, lambda f: replace(f, seconds=0.2)),
            "0.2000 s after the first frame, expected 0.0500 s",
        ),
        (
            Changed(0, 1, lambda f: replace(f, views={})),
            r"views \[\], but the episode began with \['front', 'wrist'\]",
        ),
        (
            Changed(0, 4, with_view("wrist", image=np.zeros((32, 32, 3), np.uint8))),
            r"'wrist': image of \(32, 32\)",
        ),
        (
            Changed(0, 4, with_view("wrist", world_from_camera=2 * np.eye(4))),
            r"'wrist', index = frame: .*\[4\] is no",
        ),
        (
            Changed(0, 4, with_view("front", intrinsics=np.full((3, 3), np.inf))),
            r"'front', frame 4: matrices must be",
        ),
        (Changed(1, key="a.b"), r"key of an episode 'a.b' must be made of letters"),
        (Changed(1, key="squares-0000"), "'squares-0000' comes twice in shard-000000.tar"),
        (Changed(1, instructions=()), "has no instruction"),
        (Changed(1, provenance={"when": object()}), "provenance must hold JSON values"),
        (Changed(1, key="k" * 99), "more than 100 characters"),
    ],
)
def test_malformed_episodes_are_refused_by_name(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        record(source, tmp_path)
    assert list(contents(tmp_path)) == ["index.json"]


def test_the_number_json_does_not_hold_is_named():
    episode = replace(MovingSquares(1, 4, (16, 16))[0], provenance={"arm": [{"mass": np.inf}]})
    with pytest.raises(ValueError, match=r"the value of 'arm\[0\].mass' in its provenance is NaN"):
        encode_episode(episode, VideoEncoding())


def test_equal_keys_in_different_shards_are_refused(tmp_path):
    with pytest.raises(ShardError, match=r"'squares-0000' is in shard-000000.tar and in shard-000001.tar"):
        record(Changed(2, key="squares-0000"), tmp_path)


def test_nearly_unit_quaternions_are_normalised(tmp_path):
    record(Changed(0, 0, with_action(_4=1.0005)), tmp_path)
    action = ShardSet(tmp_path).header(0).actions[0]
    assert abs(np.linalg.norm(action[3:7]) - 1) < 1e-6


def test_lost_calibration_is_kept(tmp_path):
    record(Changed(0, 2, with_view("wrist", world_from_camera=np.full((4, 4), np.nan))), tmp_path)
    poses = ShardSet(tmp_path).header(0).world_from_camera["wrist"]
    assert np.isnan(poses[2]).all()
    assert np.isfinite(poses[1]).all()


@pytest.mark.parametrize("verify", [False, True])
def test_truncated_and_altered_shards(verify, folder, tmp_path):
    record(SOURCE, tmp_path)
    shard = tmp_path / "shard-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(
        ShardError, match=rf"shard-000001.tar has {len(whole) - 512} bytes, its index says {len(whole)}"
    ):
        ShardSet(tmp_path, verify)
    entry = ShardSet(folder).episodes[2]
    at = entry.members["front.mp4"].offset + 100
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    if verify:
        with pytest.raises(ShardError, match="has the checksum"):
            ShardSet(tmp_path, verify)
        return
    shards = ShardSet(tmp_path)
    assert shards.images(2, "wrist", [0]).shape == (1, 32, 48, 3)
    with pytest.raises(
        ShardError, match=r"shard-000001.tar, key 'squares-0002', member 'front.mp4' is damaged"
    ):
        shards.images(2, "front", [0])


def test_errors_of_the_index_name_the_way_out(folder, tmp_path):
    with pytest.raises(
        ShardError, match=r"nowhere is not a folder; .*`ai-wam collect` or `ai-wam convert --out .*nowhere"
    ):
        ShardSet(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"has no index.json; .*`ai-wam collect"):
        ShardSet(tmp_path)
    (tmp_path / "index.json").write_text('{"schema": 99}')
    with pytest.raises(ShardError, match=r"schema version 99; this version of ai-wam reads 1"):
        ShardSet(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ShardError, match="cannot be read as JSON"):
        ShardSet(tmp_path)


def test_shard_writer_records_a_stream_and_continues(folder, tmp_path):
    settings = {"robot": "squares"}
    with ShardWriter(tmp_path, 2, settings, LOSSLESS) as writer:
        writer.write(SOURCE[0])
    assert len(ShardSet(tmp_path)) == 1
    with pytest.raises(ShardError, match="is finished"):
        ShardWriter(tmp_path, 2, settings, LOSSLESS)

    def stop_after(episodes, path):
        with ShardWriter(path, 2, settings, LOSSLESS) as writer:
            for index in range(writer.finished, len(SOURCE)):
                if index == episodes:
                    raise KeyboardInterrupt
                writer.write(SOURCE[index])
            return writer.finished

    path = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        stop_after(3, path)
    assert not list(path.glob("*.partial"))
    stop_after(99, path)
    assert len(ShardSet(path, verify=True)) == 5
    for number in range(3):
        name = f"shard-{number:06d}.tar"
        assert (path / name).read_bytes() == (folder / name).read_bytes()


def test_a_refused_episode_leaves_the_writer_usable(tmp_path):
    with ShardWriter(tmp_path, 2) as writer:
        writer.write(SOURCE[0])
        with pytest.raises(ValueError, match="not finite"):
            writer.write(Changed(1, 3, with_action(_2=np.nan))[1])
        writer.write(SOURCE[2])
    assert [entry.key for entry in ShardSet(tmp_path).episodes] == ["squares-0000", "squares-0002"]


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="MovingSquares has no episodes"):
        record(replace(SOURCE, episodes=0), tmp_path)
    with pytest.raises(ValueError, match="episodes_per_shard is 0"):
        ShardWriter(tmp_path, 0)
    unpicklable = Changed(change=lambda frame: frame)
    with pytest.raises(TypeError, match=r"Changed cannot be sent to worker processes: .*workers=0"):
        record(unpicklable, tmp_path, workers=1)


def test_settings_are_described_and_compared():
    described = describe(SOURCE)
    assert described["class"] == "benchmarks.speed.moving_squares.MovingSquares"
    assert describe({"a": np.arange(3), "b": (1, None), "c": {2, 1}}) == {
        "a": [0, 1, 2],
        "b": [1, None],
        "c": [1, 2],
    }
    assert describe(Episode) == "ai_wam.episodes.Episode"
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == [
        "b.c: 2 != 3",
        "d: 'absent' != 4",
    ]
    assert differences(described, describe(SOURCE)) == []
