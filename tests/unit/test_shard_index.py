"""Indices and members that no writer of ours makes: refused in a sentence, before memory is taken."""

import errno
import io
import json
import os
import pickle
import resource
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ai_wam.cli.errors import Ended, one_sentence
from ai_wam.types import Clip
from ai_wam.video import VideoEncoding, write_video
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.clip_dataset import ClipDataset, Collate
from datamodules.shards.clip_windows import Windows
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet

FRAMES, SIZE, VIEWS = 6, (32, 32), ("front", "wrist")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "good"
    write_shards(MovingSquares(2, FRAMES, SIZE, views=VIEWS), folder, 2, workers=0, progress=False)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded, tmp_path / "bad")
    return tmp_path / "bad"


@pytest.fixture(autouse=True)
def little_memory():
    """A bomb that went off would take more."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def edit(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "shard-000000.json") -> None:
    path = folder / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def of_episode(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda shard: shard["episodes"][0].update(values))


def of_member(name: str, where: list[int]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda shard: shard["episodes"][0]["members"].update({name: where}))


def as_text(old: str, new: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "shard-000000.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return write


def other(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def of_line(**values: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        index["shards"][0].update(values)
        (folder / "index.json").write_text(json.dumps(index))

    return write


INDEX: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"key {key!r}": (of_episode(key=key), "the key of an episode") for key in
       ("../../out", "a/b", "", "..", "a b", "a\n", "a\0", 3, None)},
    **{f"view {view!r}": (of_episode(views={view: [32, 32]}), f"view {view!r} must be") for view in
       ("../out", "", ".", "a/b")},
    "a member's name": (of_member("../x.mp4", [0, 1, 1]), "is no member's name"),
    "a shard elsewhere": (lambda f: edit(f, lambda s: s.update(file="../shard-000000.tar")), "no shard is"),
    "a shard elsewhere, by the set": (of_line(file="../shard-000000.tar"), "lacks"),
    "a shard of another name": (lambda f: edit(f, lambda s: s.update(file="shard-000001.tar")), "is of s"),
    "many frames": (of_episode(frames=10**9), "1000000000 frames do not fit into the"),
    **{f"frames {n!r}": (of_episode(frames=n), "") for n in (0, -1, "6", 6.0, None, True)},
    "frames 1e400": (as_text('"frames": 6', '"frames": 1e400'), ""),
    "frames 10**400": (as_text('"frames": 6', '"frames": 1' + "0" * 400), "more than 63 bits"),
    **{f"hz {n!r}": (of_episode(hz=n), "") for n in (0, -1, "x", None, float("nan"), float("inf"))},
    **{f"hz {n!r}": (of_episode(hz=n), f"the rate {n!r} is no number") for n in ("20", True, [20])},
    "a long key": (of_episode(key="k" * 10**5), "'kkkkkkkkkkkkkkkkkkkk'... has 100000 characters"),
    "a long view": (of_episode(views={"v" * 10**5: [32, 32]}), "has 100000 characters"),
    "a long text as frames": (of_episode(frames="9" * 10**5), "is no whole number, which is expected"),
    "no checksum": (of_line(sha256="x"), "lacks"),
    "no checksum of the shard": (lambda f: edit(f, lambda s: s.update(sha256="x")), "is no SHA-256"),
    "half of a character": (of_line(sha256="\ud800"), "\\ud800 is half of a character"),
    "checksums that differ": (of_line(sha256="0" * 64), "have different checksums of shard-000000.tar"),
    "a shard twice": (
        lambda f: edit(f, lambda s: s["shards"].append(s["shards"][0]), "index.json"),
        "lists a shard twice",
    ),
    "no shard": (lambda f: edit(f, lambda s: s.update(shards=[]), "index.json"), "holds no episode"),
    "a pipe": (lambda f: other(f / "shard-000000.json", os.mkfifo), "is no file"),
    "a device": (
        lambda f: other(f / "shard-000000.json", lambda path: path.symlink_to("/dev/zero")), "is no file"
    ),
    "a folder as shard": (lambda f: other(f / "shard-000000.tar", Path.mkdir), "is no file"),
    "no views": (of_episode(views={}), "has no views"),
    **{f"size {size!r}": (of_episode(views={"front": size}), "") for size in
       ([0, 32], [32], 32, None, ["32", "32"], [32.0, 32])},
    "twice": (lambda f: edit(f, lambda s: s["episodes"].append(s["episodes"][0])), ""),
    "twice by name": (
        lambda f: edit(f, lambda s: s["episodes"][1].update(key=s["episodes"][0]["key"])),
        "is listed twice in the index",
    ),
    "beyond the tar": (of_member("more", [10**9, 5, 0]), "the tar has"),
    "longer than the tar": (of_member("more", [10**5, 2**62, 0]), "the tar has"),
    "before the tar": (of_member("json", [-5, 5, 0]), ""),
    "over another": (of_member("more", [600, 5, 0]), "overlaps"),
    "no cameras": (
        lambda f: edit(f, lambda s: s["episodes"][0]["members"].pop("cameras.npz")),
        "lacks the member 'cameras.npz'",
    ),
    "no video": (
        lambda f: edit(f, lambda s: s["episodes"][0]["members"].pop("wrist.mp4")),
        "lacks the member 'wrist.mp4'",
    ),
    "episodes that are a number": (lambda f: edit(f, lambda s: s.update(episodes=3)), ""),
    "an episode that is null": (lambda f: edit(f, lambda s: s.update(episodes=[None])), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDEX)
def test_an_index(folder: Path, kind: str):
    change, words = INDEX[kind]
    change(folder)
    with pytest.raises(ShardError) as refused:
        ShardSet(folder)
    assert str(folder) in str(refused.value)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_many_keys_take_no_time(folder: Path):
    """Of which the last one stands twice; looking for it among all others took minutes."""
    keys = ",".join(f'"k{number}":1' for number in range(50_000))
    (folder / "shard-000000.json").write_text(f'{{{keys},"k49999":2}}')
    begin = time.monotonic()
    with pytest.raises(ShardError, match="the key 'k49999' stands twice"):
        ShardSet(folder)
    assert time.monotonic() - begin < 10


def test_a_disk_that_fails_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.pread", fails)
    with pytest.raises(Ended) as stop, one_sentence("fit"):
        clips(folder, "raise")[0]
    assert f"Input/output error; copy this file again: '{folder / 'shard-000000.tar'}'" in str(stop.value)
    with pytest.warns(UserWarning, match="shard-000000.tar"):
        assert clips(folder, "skip")[0] is None


def replaced(folder: Path, name: str, data: bytes) -> None:
    """Give the first episode another member, whole and with the right checksum, behind all others."""
    tar = folder / "shard-000000.tar"
    before = tar.read_bytes() + bytes(512)
    tar.write_bytes(before + data)

    def change(shard: dict[str, Any]) -> None:
        shard["bytes"] = len(before) + len(data)
        shard["episodes"][0]["members"][name] = [len(before), len(data), zlib.crc32(data)]

    edit(folder, change)
    of_line(bytes=len(before) + len(data))(folder)


def meta(**changes: object) -> bytes:
    good = {"key": "squares-0000", "frames": FRAMES, "instructions": ["x"], "provenance": {}}
    good |= {"hz": 20.0, "views": {view: list(SIZE) for view in VIEWS}}
    return json.dumps({**good, **changes}).encode()


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """A .npy file; its header may announce another shape."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": shape or array.shape})
    return stream.getvalue() + array.tobytes()


def objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}, 1], dtype=object), allow_pickle=True)
    return stream.getvalue()


def npz(method: int = zipfile.ZIP_DEFLATED, **changes: bytes | None) -> bytes:
    """Cameras of the two views; arrays as bytes of .npy files."""
    arrays: dict[str, bytes | None] = {}
    for view in VIEWS:
        arrays[f"{view}.intrinsics"] = npy(np.eye(3, dtype=np.float32)[None])
        arrays[f"{view}.world_from_camera"] = npy(np.eye(4, dtype=np.float32)[None])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in {**arrays, **changes}.items():
            if data is not None:
                archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def cameras(method: int = zipfile.ZIP_DEFLATED, **changes: bytes | None) -> bytes:
    return npz(method, **{name.replace("__", "."): data for name, data in changes.items()})


def deflated_bomb() -> bytes:
    """2 GB of zeros behind an array, in an entry that announces the array's bytes alone."""
    small = cameras()
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = b"".join([packer.compress(bytes(2**26)) for _ in range(32)]) + packer.flush()
    with zipfile.ZipFile(io.BytesIO(small)) as archive:
        entry = archive.getinfo("front.intrinsics.npy")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # stored, so that the packed bytes are the entry's
        archive.writestr(entry.filename, packed)
        for view, kind in ((view, kind) for view in VIEWS for kind in ("intrinsics", "world_from_camera")):
            if (name := f"{view}.{kind}.npy") != entry.filename:
                archive.writestr(name, npy(np.eye(3 + (kind != "intrinsics"), dtype=np.float32)[None]))
    data = bytearray(stream.getvalue())
    for begin, method, size in (
        (0, 8, 22),
        (data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x01\x02") + 4), 10, 24),
    ):
        data[begin + method : begin + method + 2] = (8).to_bytes(2, "little")
        data[begin + size : begin + size + 4] = entry.file_size.to_bytes(4, "little")
    return bytes(data)


def turned(length: float) -> np.ndarray:
    return np.where(np.arange(8) == 6, np.float32(length), ACTIONS)


def video(size: tuple[int, int], frames: int) -> bytes:
    return write_video(np.zeros((frames, *size, 3), np.uint8), 20.0, VideoEncoding(gop=1))


K, ACTIONS = np.eye(3, dtype=np.float32), np.tile(np.float32([0, 0, 0, 0, 0, 0, 1, 1]), (FRAMES, 1))
MOVED = np.arange(8) < 7
MEMBERS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "no json": ("json", lambda: b"x", "cannot be read as JSON"),
    "null": ("json", lambda: b"null", "expected a JSON object"),
    "a list": ("json", lambda: b"[]", "expected a JSON object"),
    "too deep": ("json", lambda: b"[" * 100_000, "nested too deeply"),
    "not UTF-8": ("json", lambda: b"\xff\xfe{}", ""),
    "numbers as instructions": ("json", lambda: meta(instructions=[3]), "must be a list of texts"),
    "null as instructions": ("json", lambda: meta(instructions=None), "must be a list of texts"),
    "a text as instructions": ("json", lambda: meta(instructions="abc"), "must be a list of texts"),
    "no instruction": ("json", lambda: meta(instructions=[]), "there is no instruction"),
    "provenance that is a list": ("json", lambda: meta(provenance=[]), "provenance must be an object"),
    "another episode's json": ("json", lambda: meta(key="other"), "its key is 'other'"),
    "another rate": ("json", lambda: meta(hz=10.0), "its hz is 10.0, the index says 20.0"),
    "other views": ("json", lambda: meta(views={"front": [32, 32]}), "its views is"),
    "half of a character": ("json", lambda: meta(instructions=["\ud800"]), "\\ud800 is half of a character"),
    "labels that are text": (
        "json",
        lambda: meta(provenance={"labels": dict.fromkeys(("valid", "confidence", "disagreement_px"), "x")}),
        "",
    ),
    "a pickle": ("actions.npy", lambda: pickle.dumps(3) + bytes(999), "is no .npy file"),
    "objects": ("actions.npy", lambda: objects() + bytes(999), "it holds values of type object"),
    "doubles": ("actions.npy", lambda: npy(ACTIONS.astype(float)), "of float64, expected (6, 8) of float32"),
    "a row less": ("actions.npy", lambda: npy(ACTIONS[:-1]) , "has shape (5, 8)"),
    "a column less": ("actions.npy", lambda: npy(ACTIONS[:, :-1].copy()), "has shape (6, 7)"),
    "NaN": ("actions.npy", lambda: npy(ACTIONS * np.float32("nan")), "frame 0: action"),
    "a quaternion of length 0": ("actions.npy", lambda: npy(turned(0)), "frame 0: quaternion [0.0, 0.0"),
    "a quaternion of length 5": ("actions.npy", lambda: npy(turned(5)), "has length 5"),
    "openness of 7": ("actions.npy", lambda: npy(ACTIONS * 7 - 6 * (ACTIONS * MOVED)), "openness 7 lies"),
    "a bomb": ("actions.npy", lambda: npy(ACTIONS, (10**10, 8)), "it announces (10000000000, 8)"),
    "more than 63 bits": ("actions.npy", lambda: npy(ACTIONS, (10**30, 8)), "it announces"),
    "a negative shape": ("actions.npy", lambda: npy(ACTIONS, (-6, -8)), "it announces the shape (-6, -8)"),
    "no zip": ("cameras.npz", lambda: b"x" * 999, "is no .npz file"),
    "a view less": ("cameras.npz", lambda: cameras(front__intrinsics=None), "lacks the arrays"),
    "objects as matrices": ("cameras.npz", lambda: cameras(front__intrinsics=objects()), "type object"),
    "a bomb of matrices": (
        "cameras.npz", lambda: cameras(front__intrinsics=npy(K[None], (10**10, 3, 3))), "it announces",
    ),
    "a deflated bomb": (
        "cameras.npz",
        lambda: cameras(front__intrinsics=npy(np.zeros((2**20, 3, 3), np.float32))),
        "bytes of arrays, at most",
    ),
    "a bomb that announces little": ("cameras.npz", deflated_bomb, "array 'front.intrinsics'"),
    "another compression": ("cameras.npz", lambda: cameras(method=zipfile.ZIP_LZMA), "expected none or"),
    "focal lengths of 0": ("cameras.npz", lambda: cameras(front__intrinsics=npy(0 * K[None])), "above 0"),
    "K that is half lost": (
        "cameras.npz",
        lambda: cameras(front__intrinsics=npy(np.where(np.eye(3) == 1, np.float32("nan"), K)[None])),
        "must be finite",
    ),
    "a pose that is not rigid": (
        "cameras.npz",
        lambda: cameras(front__world_from_camera=npy(2 * np.eye(4, dtype=np.float32)[None])),
        "is no rigid motion",
    ),
    "matrices for other frames": (
        "cameras.npz", lambda: cameras(front__intrinsics=npy(np.tile(K, (4, 1, 1)))), "has shape (4, 3, 3)",
    ),
    "poses for other frames than K": (
        "cameras.npz", lambda: cameras(front__intrinsics=npy(np.tile(K, (6, 1, 1)))), "as many of each",
    ),
    "labels of other frames": ("labels.npz", lambda: npz(**labels(5)), "the episode has 6"),
    "labels of another type": ("labels.npz", lambda: npz(**labels(6, np.float64)), "(6,) of float32"),
    "pictures of another size": ("front.mp4", lambda: video((16, 16), FRAMES), "its pictures are (16, 16)"),
    "more pictures": ("front.mp4", lambda: video(SIZE, 9), "it holds 9 frames, the episode has 6"),
    "fewer pictures": ("front.mp4", lambda: video(SIZE, 3), ""),
    "no video": ("front.mp4", lambda: b"x" * 999, ""),
}  # fmt: skip


def labels(frames: int, kind: type = np.float32) -> dict[str, bytes | None]:
    ones = np.ones(frames, np.float32)
    return {
        "valid": npy(ones.astype(bool)),
        "confidence": npy(ones.astype(kind)),
        "disagreement_px": npy(ones),
    }


def clips(folder: Path, on_error: Any) -> ClipDataset:
    clip = Clip(frames=5, stride=1, control_hz=20.0, size=SIZE, views=VIEWS)
    return ClipDataset([ShardSet(folder)], Windows(clip, "hold", dense=True), on_error=on_error)


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_member(folder: Path, kind: str):
    """Refused or left out, and the reason names shard, key and member either way."""
    member, data, words = MEMBERS[kind]
    replaced(folder, member, data())
    place = f"{folder / 'shard-000000.tar'}, key 'squares-0000', member {member!r}"
    with pytest.raises(ShardError) as refused:
        list(ShardSet(folder)[0].frames)
    assert place in str(refused.value)
    assert words in str(refused.value)
    dataset = clips(folder, "skip")
    with pytest.warns(UserWarning, match="skipped a sample") as said:
        assert dataset[FRAMES - 1] is None
    assert place in str(said[0].message)
    assert dataset[FRAMES] is not None  # of the other episode
    assert int(dataset.skipped) == 1


def test_faults_of_the_machine_are_not_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("datamodules.shards.folder._opened", fails)
    with pytest.raises(OSError, match="Too many open files"):
        clips(folder, "skip")[0]


@pytest.mark.parametrize("size", [1, 2])
def test_a_training_batch_that_is_damaged_as_a_whole_gets_another_window(folder: Path, size: int):
    """Recipes have batches of one or two: there, one damaged sample ended a run that was to go on."""
    replaced(folder, "actions.npy", npy(turned(0)))
    dataset = clips(folder, "skip")
    loader = DataLoader(dataset, size, collate_fn=Collate(5))
    with pytest.warns(UserWarning, match="skipped a sample"):
        batches = list(loader)
    assert len(batches) == -(-len(dataset) // size)
    assert {key.partition("@")[0] for batch in batches for key in batch.keys} == {"squares-0001"}
    assert dataset.skipped >= FRAMES
    with pytest.raises(ShardError, match="has length 0"):
        list(DataLoader(clips(folder, "raise"), size, collate_fn=Collate(5)))


def test_damaged_episodes_have_no_captions_where_they_are_left_out(folder: Path):
    """Captions are looked at before the first sample is."""
    replaced(folder, "json", meta(instructions=[3]))
    recorded = ShardSet(folder)
    assert recorded.captions(skip=True) == set(recorded.header(1).instructions)
    with pytest.raises(ShardError, match="must be a list of texts"):
        recorded.captions()
