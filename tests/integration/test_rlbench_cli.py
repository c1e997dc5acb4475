"""RLBench on the command line, over the double of its names."""

import sys
from pathlib import Path

import pytest

from ai_wam.cli import main

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
    assert [line[:4] for line in lines] == ["ok  "] * 7
    assert "RLBench 1.2.0" in lines[5]
    assert "24 steps" in lines[6]
    assert "scene_change 0" in lines[6]


@pytest.mark.parametrize(
    ("changes", "name", "advice"),
    [
        ({"AI_WAM_RLBENCH_PYTHON": "/no/python"}, "interpreter", "set AI_WAM_RLBENCH_PYTHON"),
        ({"COPPELIASIM_ROOT": None}, "COPPELIASIM_ROOT", "not set; unpack CoppeliaSim"),
        ({"COPPELIASIM_ROOT": "/tmp"}, "COPPELIASIM_ROOT", "/tmp without libcoppeliaSim.so; unpack"),
        ({"COPPELIASIM_ROOT": None}, "LD_LIBRARY_PATH", "set COPPELIASIM_ROOT"),
        (
            {"DISPLAY": None},
            "display",
            'none; install xvfb and begin AI_WAM_RLBENCH_PYTHON with "xvfb-run -a"',
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
    run(monkeypatch, "rlbench-doctor", f'--paths=["{DOUBLE}"]')
    *lines, last = capsys.readouterr().out.splitlines()
    assert (len(lines), last) == (3, "RLBench runs here.")
