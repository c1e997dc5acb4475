"""Text and JSON of people: read as meant, or refused with the file's name and what is wrong with it."""

from pathlib import Path

import pytest

from ai_wam.files.json_yaml import parse_json, read_json, read_text, read_yaml


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
        (r'{"task": "\ud83d"}', r"\\ud83d is half of a character"),
        (r'{"\udc00 ": 1}', r"\\udc00 is half of a character"),
    ],
)
def test_json_that_cannot_be_meant(text: str, said: str) -> None:
    """One sentence each."""
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text, "cameras.json")
    assert "cameras.json" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: a\nval: b\ntrain: c\n", "line 3: the key 'train' stands twice"),
        ("data: {train: a, train: c}\n", "line 1: the key 'train' stands twice"),
        ("data:\n- x: {a: 1}\n  y: [1, 2]\n  x: 3\n", "line 4: the key 'x' stands twice"),
    ],
)
def test_a_key_that_stands_twice_in_yaml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_yaml(tmp_path / "a.yaml")


def test_equal_keys_of_different_mappings_are_fine(tmp_path: Path) -> None:
    text = "a: &x {b: 1}\nb: {a: 1, b: {b: 2}}\nc: [{a: 1}, {a: 2}, b]\nd: {<<: *x, c: 3}\n? [e, e]\n: b\n"
    (tmp_path / "a.yaml").write_text(text.replace("? [e, e]\n: b\n", ""))
    assert read_yaml(tmp_path / "a.yaml")["d"] == {"b": 1, "c": 3}
