"""Pictures as people have them: turned by a note, cut off, of other colours."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.reading.pictures_and_text import read_picture

# EXIF's eight orientations: how the stored picture comes from the one that viewers show
_STORED = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", sorted(_STORED))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_a_picture_is_read_as_viewers_show_it(tmp_path: Path, orientation: int, suffix: str) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](shown)))
    stored.save(tmp_path / f"a{suffix}", exif=exif, lossless=True)
    assert np.array_equal(read_picture(tmp_path / f"a{suffix}"), shown)


@pytest.mark.parametrize("length", [0, 10, 300, 600])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, length: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = tmp_path / f"a{suffix}"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"a{suffix} cannot be decoded .* copy or save the file again"):
        read_picture(file)


def test_a_picture_bomb_is_refused(tmp_path: Path) -> None:
    """A few kilobytes that claim to be gigabytes."""
    data = bytearray((lambda f: (Image.new("RGB", (8, 8)).save(f), f.read_bytes())[1])(tmp_path / "a.png"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.png cannot be decoded"):
        read_picture(tmp_path / "a.png")
