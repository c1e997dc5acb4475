"""The table of what poses can solve in Meta-World resumes from its file and adds up."""

from importlib.util import find_spec

import pytest

from ai_wam.files.atomic import write_json
from ai_wam.files.json_yaml import read_json
from benchmarks.speed import metaworld


def test_sums_stand_below_the_tasks():
    one = {"scenes": 4, "steps": 70, "expert": 4, "poses/8": 3, "codec/8": 2, "blind/8": 1}
    lines = metaworld.table({"push": one, "reach": one | {"steps": 50, "codec/8": 4}}, [8])
    ways = ["poses/8", "codec/8", "blind/8"]
    assert lines.splitlines()[0].split() == ["task", "scenes", "steps", "expert", *ways]
    assert lines.splitlines()[-1].split() == ["all", "8", "8", "6", "6", "2"]


def test_a_file_of_other_settings_is_refused(tmp_path):
    write_json(tmp_path / "kept.json", {"settings": {"scenes": 3}, "tasks": {}})
    with pytest.raises(ValueError, match=r"other settings, \{'scenes': 3\}.*another file as --out"):
        metaworld.report(tmp_path / "kept.json", ["reach"], scenes=1)


@pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra: pip install 'ai-wam[metaworld]'")
def test_a_task_is_run_once_and_kept(tmp_path, monkeypatch, capsys):
    kept, arguments = tmp_path / "kept.json", {"tasks": ["reach"], "scenes": 1, "strides": [8], "size": 64}
    metaworld.report(kept, **arguments)
    printed = capsys.readouterr().out
    row = read_json(kept)["tasks"]["reach"]
    assert (row["scenes"], row["expert"], row["poses/8"], row["codec/8"]) == (1, 1, 1, 1)
    assert row["blind/8"] in (0, 1)
    monkeypatch.setattr(metaworld, "_row", None)  # a second run of the task would fail
    metaworld.report(kept, **arguments)
    assert capsys.readouterr().out == printed
