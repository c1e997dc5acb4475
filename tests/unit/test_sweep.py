"""Sweeps: what they are read from, how they resume, what they refuse, how two of them compare."""

import json
from pathlib import Path

import pytest
from sweep_results import POINTS, SOLVED, written

from ai_wam.cli import main, sweep
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import write_json
from benchmarks.evaluation.sweep_comparison import holm


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("points.yaml").write_text(POINTS)
    for name in ("a", "b"):
        Path(f"{name}.ckpt").write_text(name)
    monkeypatch.setattr(sweep, "_test", written)
    return tmp_path


def run(checkpoint="a.ckpt", out="sw", points="points.yaml", *words: str) -> dict:
    main(["sweep", "--points", points, "--out", out, f"--ckpt_path={checkpoint}", *words])
    return json.loads((Path(out) / "sweep.json").read_text())


def test_every_point_is_tested_and_the_file_says_what_came_out(place, capsys):
    found = run()
    assert [point["name"] for point in found["results"]] == list(SOLVED)
    assert [point["mean"]["policy"] for point in found["results"]] == [0.9, 0.6, 0.2]
    assert found["results"][1]["shifted"]["cameras"]["azimuth"] == [45, 45]
    assert found["results"][0]["shifted"] is None
    assert found["results"][2]["stop_reasons"] == {"success": 2, "timeout": 8}
    assert found["results"][2]["invalid_frames"] == 10
    assert "az60" in capsys.readouterr().out
    page = (place / "sw" / "sweep.html").read_text()
    assert page.count("<polyline") == 2  # policy and ceiling along the azimuth
    assert "az45: policy 60" in page
    assert 'href="az60/report.html"' in page


def test_a_point_whose_ceiling_is_low_is_said(place, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "_test", lambda *given: written(*given, ceiling="timeout"))
    assert [point["mean"]["policy"] for point in run()["results"]] == [None] * 3
    said = "az60: in no mean, since its ceiling is low, is reach_target: policy 20 %, ceiling 0 %"
    assert said in capsys.readouterr().out
    assert said in (place / "sw" / "sweep.html").read_text()


def test_a_sweep_resumes_with_the_point_that_was_not_finished(place, monkeypatch):
    whole = run(out="whole")["results"]
    begun = []

    def interrupted(point, *rest):
        begun.append(point.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        written(point, *rest)

    monkeypatch.setattr(sweep, "_test", interrupted)
    with pytest.raises(SystemExit):
        run()
    assert len(json.loads(Path("sw/sweep.json").read_text())["results"]) == 1
    assert run()["results"] == whole
    assert begun == ["none", "az45", "az45", "az60"]
    run()
    assert len(begun) == 4


def test_a_sweep_without_results_is_not_held_against_another_one(place, monkeypatch):
    def refused(point, *rest):
        raise InvalidValue("trials_per_task is 0")

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_test", refused)
        with pytest.raises(SystemExit, match="trials_per_task is 0"):
            run()
    assert json.loads(Path("sw/sweep.json").read_text())["results"] == []
    assert len(run("b.ckpt")["results"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("b.ckpt",), r"sweep\.json is a sweep of the checkpoint a\.ckpt, not b\.ckpt; repeat the command"),
        (("a.ckpt", "sw", "points.yaml", "--model.sampling.steps=1"), r"of the options \[\], not \['--model"),
        (("a.ckpt", "sw", "fewer.yaml"), "a sweep of other points; repeat"),
        (("a.ckpt", "new", "points.yaml", "--data.out=x"), r"--data\.out=x is set by the sweep"),
        (("a.ckpt", "new", "twice.yaml"), r"points \['none'\] come twice"),
        (("a.ckpt", "new", "odd.yaml"), r"unknown keys: \['shifts'\]"),
        (("a.ckpt", "new", "half.yaml"), r"point 'x' needs both `axis` and `at`"),
        (("a.ckpt", "new", "bad.yaml"), r"name is '\.\./x'; give it letters"),
        (("a.ckpt", "new", "list.yaml"), "a sweep is `points:` with a list"),
        (("gone.ckpt", "new"), r"there is no checkpoint 'gone\.ckpt'"),
    ],
)
def test_what_is_no_sweep_or_another_one_is_refused_and_nothing_is_lost(place, words, message):
    before = run()
    Path("fewer.yaml").write_text("points:\n  - {name: none}\n")
    Path("twice.yaml").write_text("points:\n  - {name: none}\n  - {name: none}\n")
    Path("odd.yaml").write_text("points:\n  - {name: x, shifts: a.yaml}\n")
    Path("half.yaml").write_text("points:\n  - {name: x, at: 3}\n")
    Path("bad.yaml").write_text("points:\n  - {name: ../x}\n")
    Path("list.yaml").write_text("- {name: none}\n")
    with pytest.raises(SystemExit, match=message):
        run(*words)
    assert json.loads(Path("sw/sweep.json").read_text())["results"] == before["results"]
    assert not Path("new").exists()


def test_a_file_of_a_shift_that_changed_makes_another_sweep(place):
    Path("points.yaml").write_text(POINTS.replace("{cameras: {azimuth: [45, 45]}}", "az.yaml"))
    Path("az.yaml").write_text("cameras: {azimuth: [45, 45]}\n")
    assert run()["points"][1]["shift"] == {"cameras": {"azimuth": [45, 45]}}
    Path("az.yaml").write_text("cameras: {azimuth: [40, 45]}\n")
    with pytest.raises(SystemExit, match="a sweep of other points"):
        run()
    Path("az.yaml").unlink()
    with pytest.raises(SystemExit, match=r"az\.yaml"):
        run()


def compare(one="sw", other="other") -> None:
    main(["compare", f"{one}/sweep.json", f"{other}/sweep.json"])


def test_two_sweeps_compare_point_by_point(place, monkeypatch, capsys):
    run()
    better = {"none": 9, "az45": 10, "az60": 10}
    monkeypatch.setattr(sweep, "_test", lambda *given: written(*given, solved=better))
    run("b.ckpt", "other")
    capsys.readouterr()
    compare()
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["none"][-3:] == ["0", "1", "1"]
    assert rows["az45"][-4:] == ["0", "4", "0.125", "0.25"]  # 2 / 2^4, of two that are left
    assert rows["az60"][-4:] == ["0", "8", "0.00781", "0.0234"]  # 2 / 2^8, of three


def test_sweeps_of_other_shifts_do_not_compare(place):
    run()
    Path("points.yaml").write_text(POINTS.replace("az60", "az61"))
    with pytest.raises(KeyError):
        run(out="other")
    with pytest.raises(SystemExit, match=r"points \['az60'\] are finished in one of them only"):
        compare()
    found = json.loads(Path("sw/sweep.json").read_text())
    found["results"][1]["shifted"]["cameras"]["azimuth"] = [44, 45]
    write_json(Path("changed/sweep.json"), found)
    with pytest.raises(SystemExit, match=r"point 'az45' is the shift .*\[45\.0, 45\.0\].*\[44, 45\]"):
        compare(other="changed")
    with pytest.raises(SystemExit, match="one is a sweep, the other the results of one test"):
        main(["compare", "sw/sweep.json", "sw/none/results.json"])


def test_holm_adjusts_as_in_its_paper():
    """Example of Wikipedia's article: of 0.01, 0.04, 0.03, 0.005 the first and the last stay below 0.05."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
