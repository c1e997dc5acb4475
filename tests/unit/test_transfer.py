"""The study of transfer: its commands, how it continues, and its page."""

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from sweep_results import POINTS, written

from ai_wam.cli.shipped_configs import config_path
from ai_wam.cli.signals import Terminated
from ai_wam.cli.training import settings_of_fit
from ai_wam.files.atomic import write_json
from benchmarks.evaluation.sweep import SweepRecord, read_points
from benchmarks.transfer import running
from benchmarks.transfer.__main__ import main
from benchmarks.transfer.chart import line_chart
from benchmarks.transfer.outcomes import Outcomes, _separation
from benchmarks.transfer.page import write_page
from benchmarks.transfer.study import TRAININGS, Job, jobs


def test_every_job_comes_after_those_it_needs_and_once():
    listed = jobs(list(TRAININGS), range(3))
    names = [job.name for job in listed]
    assert len(set(names)) == len(names)
    for index, job in enumerate(listed):
        assert set(job.needs) <= set(names[:index])
    folders = [word for job in listed for word in job.words if word.startswith(("--out=", "--data.out="))]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", ["cameras_no_rays", "baseline_one_rig_no_rays", "baseline_tabletop"])
def test_the_words_of_a_training_are_those_of_a_fit(name: str):
    """Parsed, not run."""
    fit = next(job for job in jobs([name], [7]) if job.name.startswith("fit"))
    settings = settings_of_fit(fit.words[1:])
    chosen = TRAININGS[name]
    assert settings["seed_everything"] == 7
    assert settings["data"]["init_args"]["train"] == f"data/{chosen.data}/train"
    init = settings["model"]["init_args"]
    rays = (
        init["backbone"]["init_args"]["rays"] if "backbone" in init else init["encoder"]["init_args"]["rays"]
    )
    assert rays is not name.endswith("_no_rays")
    for config in (chosen.config, chosen.benchmark, chosen.points):
        assert config is None or config_path(config).is_file()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of `ai-wam`: notes its words, and fails where one of them is `fail`."""
    script = tmp_path / "ai-wam"
    script.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        "with open('ran.txt', 'a') as file:\n    file.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "if 'fail' in sys.argv:\n    sys.exit('the disk is full')\n"
        "pathlib.Path(sys.argv[1]).write_text('')\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(running.time, "sleep", lambda _: os.sched_yield())
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def ran(folder: Path) -> list[str]:
    return (folder / "ran.txt").read_text().splitlines()


def test_what_is_finished_is_not_run_again(command: Path, capsys: pytest.CaptureFixture[str]):
    chain = [Job("a", ("a",)), Job("b", ("b", "x"), ("a",)), Job("c", ("c",), ("b",))]
    running.run(chain, command, at_once=2)
    assert ran(command) == ["a", "b x", "c"]
    running.run([*chain, Job("d", ("d",), ("a",))], command, at_once=2)
    assert ran(command) == ["a", "b x", "c", "d"]
    assert running.cpu_minutes("a", command) is not None
    assert running.cpu_minutes("e", command) is None
    with pytest.raises(ValueError, match=r"done by\n  ai-wam b x\nand would now be\n  ai-wam b y"):
        running.run([Job("b", ("b", "y"))], command, at_once=1)
    assert "ai-wam b x" in capsys.readouterr().out


def test_a_job_that_fails_is_named_and_nothing_is_run_on_top_of_it(command: Path):
    chain = [Job("a", ("a", "fail")), Job("b", ("b",), ("a",))]
    with pytest.raises(ValueError, match="a ended with status 1: the disk is full"):
        running.run(chain, command, at_once=1)
    assert ran(command) == ["a fail"]


def test_an_interrupted_training_resumes_from_its_checkpoint(command: Path):
    (command / "last.ckpt").write_text("")
    running.run(
        [Job("a", ("a",), checkpoint="last.ckpt"), Job("b", ("b",), checkpoint="no.ckpt")], command, 1
    )
    assert ran(command) == ["a --ckpt_path=last.ckpt", "b"]
    assert running.cpu_minutes("a", command) is None  # what it took before is not known
    assert running.cpu_minutes("b", command) is not None


def test_a_signal_ends_the_commands_too(command: Path, monkeypatch: pytest.MonkeyPatch):
    """As the last act of a study that is stopped; a command has the time to save what it did."""
    script = command.parent / "ai-wam"
    script.write_text(
        script.read_text().split("\n")[0] + "\nimport pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').write_text(''), sys.exit(143)))\n"
        "pathlib.Path('begun').write_text('')\ntime.sleep(60)\n"
    )

    def stop(_: float) -> None:
        if (command / "begun").exists():
            raise Terminated

    monkeypatch.setattr(running.time, "sleep", stop)
    with pytest.raises(Terminated):
        running.run([Job("a", ("a",))], command, at_once=1)
    assert (command / "saved").exists()
    assert not (command / "jobs").exists()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Results of two seeds of one training and of one of its twin without rays."""
    points = tmp_path / "points.yaml"
    points.write_text(POINTS)
    checkpoint = tmp_path / "a.ckpt"
    checkpoint.write_text("a")
    solved = {
        "cameras-s0": {"none": 10, "az45": 8, "az60": 4},
        "cameras-s1": {"none": 8, "az45": 8, "az60": 2},
        "cameras_no_rays-s0": {"none": 10, "az45": 3, "az60": 0},
    }
    for name, found in solved.items():
        record = SweepRecord(tmp_path / "results" / name, str(checkpoint), [], read_points(points))
        for point in record.points:
            written(point, record, [], found)
            record.finish(point)
        write_json(tmp_path / "jobs" / f"test-{name}.json", {"words": [], "seconds": 60})
        write_json(tmp_path / "jobs" / f"fit-{name}.json", {"words": [], "seconds": 600, "cpu_seconds": 540})
    return tmp_path


def test_rates_are_means_over_the_seeds_that_are_finished(study: Path):
    found = Outcomes(study, range(3))
    assert found.seeds_of("cameras") == [0, 1]
    assert found.finished == ["cameras", "cameras_no_rays"]
    rates = found.points("cameras")
    assert [str(rate) for rate in rates.values()] == ["90 (80 to 100)", "80", "30 (20 to 40)"]
    assert found.paired("cameras", "cameras_no_rays", ["az45"]) == (5, 0, pytest.approx(2 / 2**5))
    invalid, _ = found.doubts("cameras", "none")
    assert invalid == 0  # written without standard deviations: nothing is invalid
    near, far = found.by_angle(
        "cameras", "az60", 20.0
    )  # 112 degrees apart, less 120 where they turn together
    assert (near.trials + far.trials, near.successes + far.successes) == (20, 6)
    assert 0 < near.trials < 20
    assert found.by_angle("cameras", "az45", 20.0)[0] is None


def test_trials_are_binned_by_their_confidence():
    surer, worse = np.array([1.0, 2, 3, 5]), np.array([4.0, 5, np.inf])
    assert _separation(surer, worse) == pytest.approx((3 * 3 + 0 + 0.5 + 1) / 12)


def test_the_page_says_what_was_found_and_what_was_not_run(study: Path):
    write_page(Outcomes(study, range(3)), study / "points.yaml", study / "transfer.md")
    page = (study / "transfer.md").read_text()
    assert "| `az45` | not run | 80 |" in page
    assert "9, 9" in page  # minutes of a processor
    assert "diffusion policy, one pair" in page
    assert (study / "transfer_azimuth.svg").read_text().count("<polyline") == 1
    with pytest.raises(ValueError, match="no training of the study is tested yet"):
        write_page(Outcomes(study / "nothing", [0]), study / "points.yaml", study / "no.md")


def test_the_page_shows_what_the_policy_saw(study: Path):
    red = Image.new("RGB", (160, 80), (255, 0, 0))
    red.save(study / "results/cameras-s0/none/seen.png")
    write_page(Outcomes(study, [0]), study / "points.yaml", study / "transfer.md")
    shown = np.asarray(Image.open(study / "transfer_seen.png"))
    assert shown.shape[2] == 3
    assert (shown == (255, 0, 0)).all(2).sum() == 4 * 160 * 80  # twice as large, whole
    assert "transfer_seen.png" in (study / "transfer.md").read_text()


def test_a_chart_is_valid_svg():
    drawn = ElementTree.fromstring(
        line_chart("a < b", {"x & y": [(0.0, 1.0), (45.0, 0.5)], "z": [(0.0, 0.25)]})
    )
    lines = drawn.findall("{*}polyline")
    assert [len(line.get("points").split()) for line in lines] == [2, 1]
    top, middle = (float(point.split(",")[1]) for point in lines[0].get("points").split())
    assert top < middle  # success grows upwards


def test_the_command_lists_what_is_done(study: Path, capsys: pytest.CaptureFixture[str]):
    main(["--out", str(study / "new"), "--only", "wide", "--seeds", "1", "--list"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in said] == [
        "data-wide-train", "data-wide-val", "fit-wide-s0", "test-wide-s0",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="seeds is 0"):
        main(["--out", str(study), "--seeds", "0"])


def test_points_of_the_shipped_sweep_are_those_that_the_page_pairs():
    names = {
        point["name"]
        for point in yaml.safe_load(config_path("configs/sweep/reach_target.yaml").read_text())["points"]
    }
    assert {"none", "azimuth_30", "azimuth_45", "azimuth_60", "cameras_mixed"} <= names
