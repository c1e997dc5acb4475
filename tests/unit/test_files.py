"""Files appear whole or not at all."""

import json
import os
import resource
import stat
from pathlib import Path

import pytest

from ai_wam.files.atomic import atomic_file, inside, write_json, write_text


def test_a_file_appears_when_it_is_whole(tmp_path: Path):
    place = tmp_path / "deep" / "a.bin"
    with atomic_file(place) as stream:
        stream.write(b"first half, ")
        assert not place.exists()
        stream.write(b"second half")
    assert place.read_bytes() == b"first half, second half"
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert os.listdir(place.parent) == ["a.bin"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    place = tmp_path / "a.json"
    write_json(place, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(place, {"x": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(place, "\ud800")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a full disk: a real error of write
    try:
        with pytest.raises(OSError, match=r"File too large: nothing was written; make room .*a\.json"):
            write_text(place, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads(place.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_name_stays_in_its_folder(tmp_path: Path):
    assert inside(tmp_path, "episode-1/front.mp4") == tmp_path / "episode-1" / "front.mp4"
    assert inside(tmp_path, "a..b@3") == tmp_path / "a..b@3"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "a//b", "a/", "./a", "a\\..\\b", "a\0b"]
)
def test_a_name_that_leads_out_of_its_folder(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="is no name of a file in"):
        inside(tmp_path, name)
