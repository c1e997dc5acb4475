"""Every file of every source, broken in every way: a command ends in one sentence, or reads it.

Sources are found as `tests/contract/test_sources.py` finds them; of files that differ in their numbers alone,
one stands for all.
"""

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_wam.cli import main
from ai_wam.cli.errors import Ended, one_sentence
from ai_wam.types import Clip
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.image_datamodule import ImagesDataModule
from datamodules.shards.convert_source import write_shards

TESTS = Path(__file__).parents[1]
FIXTURES = [
    (file, fixture.stem)
    for file in sorted((TESTS.parent / "configs" / "convert").glob("*.yaml"))
    for fixture in sorted((TESTS / "source_fixtures").glob(f"{file.stem}*.py"))
    if fixture.stem == file.stem or fixture.stem.startswith(f"{file.stem}__")
]
NUMBER = re.compile(rb"(?<![\w.\"])-?\d+(\.\d+)?(?![\w\"])")
LONGEST = 1000  # characters of a sentence

Damage = Callable[[Path, bytes], object]


def text(change: Callable[[bytes], bytes]) -> Damage:
    return lambda file, data: file.write_bytes(change(data))


ANY: dict[str, Damage] = {
    "missing": lambda file, data: None,
    "empty": text(lambda data: b""),
    "cut": text(lambda data: data[: len(data) // 2]),
    "random": text(lambda data: np.random.default_rng(0).bytes(min(len(data), 3000) + 64)),
    "a folder": lambda file, data: file.mkdir(),
}
TEXT: dict[str, Damage] = {
    "too deep": text(lambda data: b"[" * 100_000),
    "null": text(lambda data: b"null"),
    "a list": text(lambda data: b"[]"),
    "a number": text(lambda data: b"3"),
    "10**400": text(lambda data: NUMBER.sub(b"1" + b"0" * 400, data, count=1)),
    "1e400": text(lambda data: NUMBER.sub(b"1e400", data, count=1)),
    "NaN": text(lambda data: NUMBER.sub(b"NaN", data, count=1)),
    "not UTF-8": text(lambda data: b"\xe9" + data),
}
WHOLE = ("empty", "cut", "random", "a folder")  # kinds that a file which is needed cannot be


def kinds_of_files(root: Path) -> list[Path]:
    found: dict[str, Path] = {}
    for file in sorted(file for file in root.rglob("*") if file.is_file()):
        found.setdefault(re.sub(r"\d+", "#", str(file.relative_to(root))), file)
    return list(found.values())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to the values of a JSON document, the first one of every list."""
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1]
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


def without(place: tuple[Any, ...], value: object) -> Damage:
    """The first document of a file with another value at that place."""

    def write(file: Path, data: bytes) -> None:
        first, *rest = data.decode().splitlines() if file.suffix == ".jsonl" else [data.decode()]
        inner = document = json.loads(first)
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        file.write_text("\n".join([json.dumps(document), *rest]))

    return write


def damages(file: Path) -> dict[str, Damage]:
    """The ways to break a file, "missing" first."""
    if file.suffix not in (".json", ".jsonl", ".csv", ".txt"):
        return ANY
    if file.suffix in (".csv", ".txt"):
        return ANY | TEXT
    document = json.loads(file.read_text().splitlines()[0] if file.suffix == ".jsonl" else file.read_text())
    alike = {(len(place), place[-1]): place for place in reversed(list(places(document)))}
    values = {f"null at {place}": without(place, None) for place in alike.values()}
    top = {f"a list at {place}": without(place, []) for place in alike.values() if len(place) == 1}
    return ANY | TEXT | values | top


def ending(*words: object) -> str | None:
    """The sentence with which `ai-wam` refused; None if it did its work."""
    try:
        main([str(word) for word in words])
    except Ended as end:
        return f"{end.code}: {end}"
    return None


def words(yaml_file: Path, init_args: dict[str, object]) -> list[str]:
    options = [f"--source.init_args.{key}={value}" for key, value in init_args.items()]
    return ["convert", f"--config={yaml_file}", *options]


def broken(file: Path, out: Path, command: list[str]) -> Iterator[str]:
    """What is wrong with the endings of the command, for all the ways to break a file."""
    data, needed = file.read_bytes(), True
    for kind, damage in damages(file).items():
        if not needed and kind not in ANY:
            continue  # a file that is not read, or not needed
        file.unlink()
        damage(file, data)
        said = ending(*command, f"--out={out}", "--workers=0", "--gop=12")  # the cheaper encoding
        if kind == "missing":
            needed = said is not None
        if needed and kind in WHOLE and said is None and file.suffix != ".txt":
            yield f"{file.name}, {kind}: was accepted"
        if said is not None and not said.startswith("1: ai-wam convert: "):
            yield f"{file.name}, {kind}: {said[:200]!r}"
        if said is not None and len(said) > LONGEST:
            yield f"{file.name}, {kind}: {len(said)} characters"
        if said is not None and (left := [place.name for place in out.glob("shard-*")]):
            yield f"{file.name}, {kind}: left {left}"
        if said is not None and kind in WHOLE and needed and not named(file, said):
            yield f"{file.name}, {kind}: is not named in {said[:200]!r}"
        shutil.rmtree(out, ignore_errors=True)
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(data)


def named(file: Path, said: str) -> bool:
    return file.name in said or str(file.parent) in said


@pytest.mark.parametrize(("yaml_file", "name"), FIXTURES, ids=[name for _, name in FIXTURES])
def test_every_file_of_a_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], yaml_file: Path, name: str
):
    (tmp_path / "root").mkdir()
    truth = import_module(f"source_fixtures.{name}").write(tmp_path / "root")
    command = words(yaml_file, truth.init_args)
    files = kinds_of_files(tmp_path / "root")
    assert len(files) > 3
    wrong = [each for file in files for each in broken(file, tmp_path / "out", command)]
    assert not wrong, "\n".join(wrong)
    assert "Traceback" not in capsys.readouterr().err


def test_a_worker_says_the_same_sentence(tmp_path: Path):
    (tmp_path / "root").mkdir()
    truth = import_module("source_fixtures.folder").write(tmp_path / "root")
    file = next((tmp_path / "root").glob("*/cameras.json"))
    file.write_text("[")
    command = words(TESTS.parent / "configs" / "convert" / "folder.yaml", truth.init_args)
    said = [ending(*command, f"--out={tmp_path / 'out'}", f"--workers={number}") for number in (0, 1)]
    assert said[0] == said[1]
    assert str(file) in str(said[0])


# ---------------------------------------------------------------------- shards


def broken_index(folder: Path) -> str:
    path = folder / "shard-000000.json"
    path.write_text(path.read_text().replace('"frames": 9', f'"frames": {10**9}'))
    return "shard-000000.json"


def broken_member(folder: Path) -> str:
    """Provenance that is null, under the right checksum: of the first episode, in its place in the tar."""
    path = folder / "shard-000000.json"
    shard = json.loads(path.read_text())
    offset, size, _ = where = shard["episodes"][0]["members"]["json"]
    tar = bytearray((folder / "shard-000000.tar").read_bytes())
    meta = {**json.loads(tar[offset : offset + size]), "provenance": None}
    tar[offset : offset + size] = json.dumps(meta).encode().ljust(size)
    where[2] = zlib.crc32(tar[offset : offset + size])
    (folder / "shard-000000.tar").write_bytes(tar)
    path.write_text(json.dumps(shard))
    return "member 'json'"


def cut_tar(folder: Path) -> str:
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-600])
    return "shard-000000.tar"


FIT = ["--config=configs/quickstart.yaml", "--data.workers=0", "--trainer.logger=false"]
READ_SHARDS: dict[str, Callable[[Path], list[object]]] = {
    "fit": lambda path: [*FIT, f"--data.train={path}", f"--data.val={path}"],
    "cache": lambda path: [*FIT, f"--data.train={path}", f"--data.val={path}"],
    "inspect": lambda path: [path, "--out=out/report"],
    "inspect --camera_check": lambda path: [path, "--out=out/check", "--camera_check"],
    "export lerobot": lambda path: [f"--shards={path}", "--out=out/lerobot", "--to=lerobot"],
    "export action_images": lambda path: [f"--shards={path}", "--out=out/released", "--to=action_images"],
}


@pytest.mark.parametrize("damage", [broken_index, broken_member, cut_tar])
def test_every_command_that_reads_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], str]
):
    monkeypatch.chdir(tmp_path)
    write_shards(MovingSquares(1, 9), tmp_path / "bad", 1, workers=0, progress=False)
    words = damage(tmp_path / "bad")
    for name, options in READ_SHARDS.items():
        monkeypatch.setattr("sys.argv", ["ai-wam"])
        said = str(ending(name.split()[0], *options(tmp_path / "bad")))
        assert said.startswith(f"1: ai-wam {name.split()[0]}: "), name
        assert words in said, name
        assert str(tmp_path / "bad") in said or name == "inspect", name
    assert [file.name for file in tmp_path.glob("out/**/*") if file.is_file()] in ([], ["inspection.json"])


# ---------------------------------------------------------------------- points and pictures

SEEN: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "no point": b"key,view,frame,x,y\n",
    "other columns": b"x,y\n1,2\n",
    "not UTF-8": b"key,view,frame,x,y\nk\xe9,front,0,1,1\n",
    "UTF-16": "key,view,frame,x,y\n".encode("utf-16"),
    "bytes": bytes(range(256)),
    "NaN": b"key,view,frame,x,y\nsquares-0000,front,0,nan,1\n",
    "infinity": b"key,view,frame,x,y\nsquares-0000,front,0,1e400,1\n",
    "no number": b"key,view,frame,x,y\nsquares-0000,front,first,1,1\n",
    "a row cut off": b"key,view,frame,x,y\nsquares-0000,front,0,1\n",
    "a row too long": b"key,view,frame,x,y\nsquares-0000,front,0,1,1,1\n",
    "one point twice": b"key,view,frame,x,y\n" + 2 * b"squares-0000,front,0,1,1\n",
    "a long cell": b"key,view,frame,x,y\n" + b"k" * 200_000 + b",front,0,1,1\n",
}


def test_every_file_of_seen_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_shards(MovingSquares(1, 9), "shards", 1, workers=0, progress=False)
    for kind, data in SEEN.items():
        if data is not None:
            Path("seen.csv").write_bytes(data)
        said = str(ending("inspect", "shards", "--camera_check", "--seen=seen.csv", "--out=out"))
        assert said.startswith("1: ai-wam inspect: "), kind
        assert "seen.csv" in said, kind
        assert len(said) < LONGEST, kind
        assert not Path("out").exists(), kind


def test_every_file_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `ai-wam predict` reads before a model runs."""
    monkeypatch.chdir(tmp_path)
    frame = next(iter(MovingSquares(1, 5, views=("front", "side"))[0].frames))
    cameras = {}
    for view, each in frame.views.items():
        Image.fromarray(each.image).save(f"{view}.png")
        pose = each.world_from_camera.tolist()
        cameras[view] = {"K": each.intrinsics.tolist(), "size": [64, 64], "camera_to_world": pose}
    Path("cameras.json").write_text(json.dumps(cameras))
    images = {view: f"{view}.png" for view in frame.views}
    clip = Clip(frames=9, stride=1, control_hz=5.0, size=(64, 64), views=tuple(images))
    pose = np.asarray(frame.action).tolist()
    ImagesDataModule(clip, images, "cameras.json", "x", pose)
    for file in (Path("front.png"), Path("cameras.json")):
        data = file.read_bytes()
        for kind, damage in damages(file).items():
            file.unlink()
            damage(file, data)
            with pytest.raises(Ended) as stop, one_sentence("predict"):
                ImagesDataModule(clip, images, "cameras.json", "x", pose)
            assert file.name in str(stop.value), kind
            file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
            file.write_bytes(data)
