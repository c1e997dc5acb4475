"""Without extras the package helps, shows its demo and reads every YAML file, or names the extra it needs.

Packages of extras are hidden from a process and its children, as they are in an installation without them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXTRAS = (
    "peft", "pyarrow", "h5py", "cv2", "metaworld", "rerun", "websockets", "msgpack", "prometheus_client",
    "ray", "wandb", "mlflow", "vggt",
)  # fmt: skip
HIDE = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {EXTRAS!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
READ = """
import sys
from ai_wam.cli import main
for words in COMMANDS:
    sys.argv = ["ai-wam", *words, "--print_config"]
    try:
        main()
    except SystemExit as stop:
        if stop.code and "pip install 'ai-wam[" not in str(stop.code):
            sys.exit(f"{words}: {stop.code}")
"""


def bare(program: str, folder: Path) -> str:
    """What a program prints where extras are missing."""
    (folder / "sitecustomize.py").write_text(HIDE)  # Python imports it at its start, in child processes too
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_extras_are_hidden(tmp_path: Path):
    program = (
        "from importlib.util import find_spec\nprint([find_spec(name) for name in ('peft', 'ray', 'cv2')])"
    )
    assert bare(program, tmp_path) == "[None, None, None]\n"


def test_the_demo_runs(tmp_path: Path):
    words = ["demo", "--out", "shown", "--show", "false", "--trials", "1", "--threads", "1"]
    said = bare(f"from ai_wam.cli import main\nmain({words!r})", tmp_path)
    assert "azimuth_45" in said
    assert list(tmp_path.glob("shown/**/*.html"))


def test_every_configuration_is_read_or_names_its_extra(tmp_path: Path):
    configs = ROOT / "configs"
    commands = [
        ["fit", f"--config={file}"] for file in [*configs.glob("*.yaml"), *configs.glob("recipes/*.yaml")]
    ]
    for command in ("collect", "convert"):
        commands += [[command, f"--config={file}"] for file in configs.glob(f"{command}/*.yaml")]
    bare(f"COMMANDS = {commands!r}\n{READ}", tmp_path)
