"""Text and JSON of people: read as meant, or refused with the file's name and what is wrong with it."""

from pathlib import Path

import pytest

from ai_wam.documents import parse_json, read_json, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    """Windows' editors write one."""
    (tmp_path / "a.txt").write_text("Löffel", encoding=encoding)
    (tmp_path / "a.json").write_text('{"ö": [1, -2, 3.5, null]}', encoding=encoding)
    assert read_text(tmp_path / "a.txt") == "Löffel"
    assert read_json(tmp_path / "a.json") == {"ö": [1, -2, 3.5, None]}


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-16", "is UTF-16; save it as UTF-8"), ("latin-1", "byte 1 is 0xf6")]
)
def test_other_encodings_are_named(tmp_path: Path, encoding: str, said: str) -> None:
    """Not a UnicodeDecodeError without a file."""
    (tmp_path / "a.txt").write_text("Löffel", encoding=encoding)
    with pytest.raises(ValueError, match=f"a.txt.*{said}"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"front": {"K": 1, "K": 2}}', "'K' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"frames": ' + "9" * 400 + "}", "99999... has more than 63 bits"),
        ('{"frames": ' + "9" * 40_000 + "}", "99999... has more than 63 bits"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_json_that_cannot_be_meant(text: str, said: str) -> None:
    """One sentence each."""
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text, "cameras.json")
    assert "cameras.json" in str(caught.value)
    assert len(str(caught.value)) < 200
