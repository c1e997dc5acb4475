"""Which picture of a COLMAP model a file is, and text that is no model."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.cameras.colmap import read_colmap

LENS = "1 PINHOLE 64 48 50 50 32 24"


def write(folder: Path, names: list[str], lens: str = LENS) -> Path:
    """Picture n stands at x = -n in the world."""
    (folder / "cameras.txt").write_text(f"# cameras\n{lens}\n\n")
    lines = [f"{n + 1} 1 0 0 0 {n} 0 0 1 {name}\n" for n, name in enumerate(names)]
    (folder / "images.txt").write_text("# images\n" + "\n".join(lines) + "\n\n")
    return folder


def places(found) -> dict[str, float]:
    return {view: -float(each.world_from_camera[0, 0, 3]) for view, each in found.items()}


def test_pictures_of_one_name_are_distinguished_by_their_folders(tmp_path):
    model = write(tmp_path, ["front/000.png", "side/000.png", "old/side/000.png"])
    files = {"a": Path("shots/side/000.png"), "b": Path("shots/front/000.png"), "c": Path("old/side/000.png")}
    assert places(read_colmap(model, files)) == {"a": 1, "b": 0, "c": 2}
    assert np.allclose(read_colmap(model, files)["a"].intrinsics, [[[50, 0, 32], [0, 50, 24], [0, 0, 1]]])


@pytest.mark.parametrize(
    ("names", "files", "message"),
    [
        (["front/0.png", "side/0.png"], {"a": "top/0.png"}, r"may be any of \['front/0.png', 'side/0.png'\]"),
        (["0.png"], {"a": "front/0.png", "b": "side/0.png"}, "views 'a' and 'b' .* both fit '0.png'"),
        (["front/0.png"], {"a": "front/1.png"}, r"no picture named '1.png' .* it has \['front/0.png'\]"),
        (["0.png", "0.png"], {"a": "0.png"}, "holds '0.png' twice"),
    ],
)
def test_a_picture_that_is_not_known_for_sure_is_refused(names, files, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_colmap(write(tmp_path, names), {view: Path(file) for view, file in files.items()})


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        ("1 PINHOLE 1e400 48 50 50 32 24", "camera 1: '1e400' is beyond the largest float64"),
        ("1 PINHOLE nan 48 50 50 32 24", "camera 1: 'nan' is no finite number"),
        ("1 PINHOLE 6_4 48 50 50 32 24", "'6_4' is no finite number"),
        ("1 PINHOLE 64.5 48 50 50 32 24", "its size is 64.5 x 48 pixels, expected whole numbers"),
        ("1 PINHOLE 0 48 50 50 32 24", "its size is 0 x 48 pixels"),
        ("1 PINHOLE 64 48 50 50 32", r"expected 6 numbers, got"),
        ("1 PINHOLE 64 48", "expected 5 or more entries, got '1 PINHOLE 64 48'"),
    ],
)
def test_numbers_that_are_none_are_named(lens, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_colmap(write(tmp_path, ["0.png"], lens), {"a": Path("0.png")})


def test_a_binary_model_is_named(tmp_path):
    write(tmp_path, ["0.png"])
    (tmp_path / "images.txt").write_bytes(b"\x01\x00\xff")
    with pytest.raises(ValueError, match=r"images.txt is not UTF-8 .* must be in text form"):
        read_colmap(tmp_path, {"a": Path("0.png")})
