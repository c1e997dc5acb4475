"""What `ai-wam env` and `ai-wam --version` print."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ai_wam.cli import main
from ai_wam.cli.env import env


def printed(capsys: pytest.CaptureFixture) -> dict[str, str]:
    env()
    return {line[:24].strip(): line[24:] for line in capsys.readouterr().out.splitlines()}


def test_prints_versions_and_what_decides_drawing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    monkeypatch.delenv("COPPELIASIM_ROOT", raising=False)
    lines = printed(capsys)
    assert lines["torch"] == version("torch")
    assert lines["ai-wam"].startswith(version("ai-wam"))
    assert lines["OpenGL"].endswith("MuJoCo cannot draw: MUJOCO_GL is 'disable', which turns graphics off")
    assert (lines["MUJOCO_GL"], lines["COPPELIASIM_ROOT"]) == ("disable", "not set")
    assert lines["encoders"] == "libx264 yes, ffv1 yes"


def test_packages_that_are_missing_are_said(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ai_wam.cli.env._PACKAGES", ("no-such-package",))
    assert printed(capsys)["no-such-package"] == "not installed"


def test_the_version_stands_before_those_of_what_results_depend_on(capsys: pytest.CaptureFixture):
    main(["--version"])
    own, others = capsys.readouterr().out.splitlines()
    assert own == f"ai-wam {version('ai-wam')}"
    assert f"torch {version('torch')}, lightning {version('lightning')}" in others


def test_a_checkout_that_was_never_installed_has_a_version(tmp_path: Path):
    for name in ("ai_wam", "backbones", "tasks", "datamodules", "benchmarks", "configs"):
        (tmp_path / name).symlink_to(Path(__file__).parents[2] / name)  # without what pip left beside them
    words = [sys.executable, "-S", "-c", "import ai_wam; print(ai_wam.__version__)"]  # without site-packages
    found = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert found.stdout == "0.0+unknown\n", found.stderr
