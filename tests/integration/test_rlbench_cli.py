"""RLBench on the command line, over the double of its names."""

import re
import sys
from pathlib import Path

import pytest

from ai_wam.cli import main, rlbench_doctor

DOUBLE = Path(__file__).parents[1] / "doubles" / "rlbench_double"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["ai-wam", *words])
    main()


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A folder that passes for CoppeliaSim's, and a display."""
    (tmp_path / "libcoppeliaSim.so.1").touch()
    monkeypatch.setenv("COPPELIASIM_ROOT", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setenv("AI_WAM_RLBENCH_PYTHON", sys.executable)
    # This interpreter is no simulator's, and the display is none.
    monkeypatch.setattr(rlbench_doctor, "_PYTHONS", ((3, 10), (3, 99)))
    monkeypatch.setattr(rlbench_doctor, "_NUMPY", 3)
    opening = 'import os; print("DISPLAY=" + os.environ["DISPLAY"] + " opens")'
    monkeypatch.setattr(rlbench_doctor, "_OPEN", opening)


def test_collect(monkeypatch, tmp_path, capsys):
    simulator = "--source.init_args.simulator.init_args"
    words = [f'{simulator}.paths=["{DOUBLE}"]', f"{simulator}.image_size=[32,48]"]
    words += ["--source.init_args.tasks=[reach_target]", "--source.init_args.episodes_per_task=3"]
    config = ["--config", "configs/collect/rlbench.yaml", "--workers=0", f"--out={tmp_path / 'data'}"]
    run(monkeypatch, "collect", *config, *words)
    assert "3 episodes, 33 frames" in capsys.readouterr().out


def test_doctor_passes_where_all_is_there(installed, monkeypatch, capsys):
    run(monkeypatch, "rlbench-doctor", f'--paths=["{DOUBLE}"]')
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "RLBench runs here."
    assert [line[:4] for line in lines] == ["ok  "] * 8
    assert "RLBench 1.2.0" in lines[6]
    assert "24 steps" in lines[7]
    assert "scene_change 0" in lines[7]


def test_doctor_refuses_this_interpreters_numpy_and_a_display_that_does_not_open(
    installed, monkeypatch, capsys
):
    monkeypatch.undo()
    monkeypatch.setenv("DISPLAY", ":7")
    with pytest.raises(SystemExit, match=r"does not run here yet: .*display, versions"):
        run(monkeypatch, "rlbench-doctor", f'--paths=["{DOUBLE}"]')
    told = capsys.readouterr().out
    assert "is not below 2: pip install numpy==1.26.4" in told
    assert re.search("FAIL  display .*(DISPLAY=:7 does not open|libX11 is not installed); install xvfb", told)
    assert "replay" not in told


@pytest.mark.parametrize(
    ("python", "numpy", "commit", "words"),
    [
        ("3.10.14", "1.26.4", None, None),
        ("3.12.1", "1.26.4", "02720bba4c73fe02eb75df946b8791b806028a9d", None),
        ("3.8.19", "1.24.4", None, "Python 3.8.19 is not 3.10 to 3.12: make another environment"),
        ("3.13.0", "1.26.4", None, "Python 3.13.0 is not 3.10 to 3.12"),
        ("3.10.14", "2.0.1", None, "numpy 2.0.1 is not below 2"),
        ("3.10.14", "1.26.4", "abcdef0123", "RLBench is at abcdef0, not 02720bb: install that commit"),
    ],
)
def test_doctor_knows_the_versions_that_the_adapter_was_written_for(python, numpy, commit, words):
    versions = {"Python": python, "numpy": numpy, "RLBench": "1.2.0"}
    wrong = rlbench_doctor.mismatches(versions, {"PyRep": None, "RLBench": commit})
    assert (len(wrong), words is None or words in wrong[0]) == (0 if words is None else 1, True)


@pytest.mark.parametrize(
    ("changes", "name", "advice"),
    [
        ({"AI_WAM_RLBENCH_PYTHON": "/no/python"}, "interpreter", "set AI_WAM_RLBENCH_PYTHON"),
        ({"COPPELIASIM_ROOT": None}, "COPPELIASIM_ROOT", "not set; unpack CoppeliaSim"),
        ({"COPPELIASIM_ROOT": "/tmp"}, "COPPELIASIM_ROOT", "/tmp without libcoppeliaSim.so.1; unpack"),
        ({"COPPELIASIM_ROOT": None}, "LD_LIBRARY_PATH", "set COPPELIASIM_ROOT"),
        (
            {"DISPLAY": None},
            "display",
            '; install xvfb and begin AI_WAM_RLBENCH_PYTHON with "xvfb-run -a"',
        ),
        ({"RLBENCH_DOUBLE": "segfault:step:3"}, "replay of reach_target", "SIGSEGV"),
        ({"RLBENCH_DOUBLE": "unsolvable"}, "replay of reach_target", "Could not collect demos"),
    ],
)
def test_doctor_names_what_is_missing(installed, monkeypatch, capsys, changes, name, advice):
    for key, value in changes.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key)
    with pytest.raises(SystemExit, match=f"does not run here yet: .*{name}"):
        run(monkeypatch, "rlbench-doctor", f'--paths=["{DOUBLE}"]')
    told = capsys.readouterr().out
    assert f"FAIL  {name}" in told
    assert advice in told


def test_doctor_tells_a_missing_package(installed, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="import rlbench"):
        run(monkeypatch, "rlbench-doctor")
    assert (
        "ModuleNotFoundError: No module named 'pyrep'; install PyRep and RLBench" in capsys.readouterr().out
    )


def test_doctor_leaves_to_a_container_what_its_image_brings(monkeypatch, tmp_path, capsys):
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} "$@"\n')
    docker.chmod(0o755)
    monkeypatch.setenv("AI_WAM_RLBENCH_PYTHON", f"{docker} run")
    monkeypatch.delenv("COPPELIASIM_ROOT", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(rlbench_doctor, "_PYTHONS", ((3, 10), (3, 99)))
    monkeypatch.setattr(rlbench_doctor, "_NUMPY", 3)
    run(monkeypatch, "rlbench-doctor", f'--paths=["{DOUBLE}"]')
    *lines, last = capsys.readouterr().out.splitlines()
    assert (len(lines), last) == (4, "RLBench runs here.")
