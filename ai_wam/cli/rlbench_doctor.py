"""`ai-wam rlbench-doctor`: what is missing before RLBench runs here."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ai_wam.errors import CannotContinue
from benchmarks.simulator import SimulatorCrash, Trial
from benchmarks.simulators.rlbench.client import EnvironmentServerError
from benchmarks.simulators.rlbench.simulator import PYTHON, RLBench, environment, interpreter

_PAGE = "docs/rlbench.md"
_LIBRARY = "libcoppeliaSim.so.1"  # 4.1's name of what PyRep is linked against
_PYTHONS = ((3, 10), (3, 12))  # the server's oldest, and the newest that was tried over the genuine sources
_NUMPY = 2  # PyRep's masks break from here on
_COMMITS = {
    "PyRep": "8f420be8064b1970aae18a9cfbc978dfb15747ef",
    "RLBench": "02720bba4c73fe02eb75df946b8791b806028a9d",
}
_PROBE = """
import sys
sys.path[:0] = {paths}
import json, numpy, pyrep, rlbench
from importlib.metadata import PackageNotFoundError, distribution

def commit(name):
    try:
        source = json.loads(distribution(name).read_text("direct_url.json") or "{{}}")
        return source.get("vcs_info", {{}}).get("commit_id")
    except PackageNotFoundError:
        return None

versions = {{"Python": sys.version.split()[0], "numpy": numpy.__version__, "RLBench": rlbench.__version__}}
commits = {{name: commit(name.lower()) for name in ("PyRep", "RLBench")}}
print(json.dumps([versions, commits]))
"""
_OPEN = """
import ctypes, ctypes.util, os, sys
name = os.environ.get("DISPLAY")
library = ctypes.util.find_library("X11")
if not name:
    sys.exit("DISPLAY is not set")
if library is None:
    sys.exit("libX11 is not installed")
x = ctypes.CDLL(library)
x.XOpenDisplay.restype = ctypes.c_void_p
if not x.XOpenDisplay(None):
    sys.exit("DISPLAY=" + name + " does not open")
print("DISPLAY=" + name + " opens")
"""


class Check(NamedTuple):
    """One line of the report: what was looked at, what was found, and what to do if that is not enough."""

    name: str
    good: bool
    found: str
    advice: str


def rlbench_doctor(
    task: str = "reach_target", variation: int = 0, paths: Sequence[str] = (), timeout: float = 600.0
) -> None:
    """Check the way to RLBench step by step, and replay one demonstration at its end.

    Exits with 1 if anything is missing; every line says what to do about it.

    Args:
        task: whose demonstration is replayed.
        variation: of that task.
        paths: folders put before those of the simulator's interpreter.
        timeout: seconds until the demonstration must be there.
    """
    checks = [_interpreter()]
    if Path(interpreter()[0]).name not in ("docker", "podman"):  # whose image brings all of this
        checks += [_folder(), *_variables(), _display()]
    for check in checks:
        _tell(check)
    for last in (_imports, _versions, lambda paths: _replay(task, variation, paths, timeout)):
        checks.append(last(paths))
        _tell(checks[-1])
        if not checks[-1].good:
            break
    missing = [check.name for check in checks if not check.good]
    if missing:
        raise CannotContinue(f"RLBench does not run here yet: {', '.join(missing)}")
    print("RLBench runs here.")


def _tell(check: Check) -> None:
    advice = "" if check.good else f"; {check.advice}"
    print(f"{'ok  ' if check.good else 'FAIL'}  {check.name:<28}{check.found}{advice}", flush=True)


def _interpreter() -> Check:
    words = interpreter()
    said = " ".join(words) + ("" if PYTHON in os.environ else " (this process's own)")
    advice = f'set {PYTHON}, for example to "xvfb-run -a /opt/rlbench/bin/python" ({_PAGE})'
    return Check("interpreter", shutil.which(words[0]) is not None, said, advice)


def _folder() -> Check:
    advice = f"unpack CoppeliaSim Edu 4.1 and set COPPELIASIM_ROOT to its folder ({_PAGE})"
    root = os.environ.get("COPPELIASIM_ROOT")
    if root is None:
        return Check("COPPELIASIM_ROOT", False, "not set", advice)
    there = (Path(root) / _LIBRARY).exists()
    return Check("COPPELIASIM_ROOT", there, f"{root} {'with' if there else 'without'} {_LIBRARY}", advice)


def _variables() -> list[Check]:
    """What the simulator's process is given, whatever this one has."""
    given, checks = environment(), []
    for name in ("LD_LIBRARY_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH"):
        own = "as here" if os.environ.get(name) == given.get(name) else "set for the simulator's process only"
        found = f"{given[name]} ({own})" if name in given else "unknown while COPPELIASIM_ROOT is"
        checks.append(Check(name, name in given, found, "set COPPELIASIM_ROOT, the rest follows"))
    return checks


def _display() -> Check:
    """Whether there is one that opens, from inside the interpreter's wrapper."""
    advice = f'install xvfb and begin {PYTHON} with "xvfb-run -a", or start an X server and set DISPLAY'
    good, said = _run(_OPEN)
    return Check("display", good, said, advice)


def _imports(paths: Sequence[str]) -> Check:
    advice = f"install PyRep and RLBench, at the commits of {_PAGE}, into that interpreter"
    good, said = _run(_probe(paths))
    return Check("import rlbench", good, "both packages" if good else said, advice)


def _versions(paths: Sequence[str]) -> Check:
    """Whether what can be imported is what the adapter was written for."""
    _, said = _run(_probe(paths))
    versions, commits = json.loads(said)
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    wrong = mismatches(versions, commits)
    advice = f"{'; '.join(wrong)} ({_PAGE})"
    return Check("versions", not wrong, found, advice)


def mismatches(versions: Mapping[str, str], commits: Mapping[str, str | None]) -> list[str]:
    """What to do about versions that the adapter was not written for.

    Args:
        versions: of Python, numpy and RLBench.
        commits: of PyRep and RLBench, None where an installation does not say.
    """
    wrong = []
    oldest, newest = (".".join(map(str, end)) for end in _PYTHONS)
    if not _PYTHONS[0] <= _numbers(versions["Python"]) <= _PYTHONS[1]:
        wrong.append(f"Python {versions['Python']} is not {oldest} to {newest}: make another environment")
    if _numbers(versions["numpy"])[0] >= _NUMPY:
        wrong.append(f"numpy {versions['numpy']} is not below {_NUMPY}: pip install numpy==1.26.4")
    for name, commit in commits.items():
        if commit not in (None, _COMMITS[name]):
            wrong.append(f"{name} is at {commit[:7]}, not {_COMMITS[name][:7]}: install that commit")
    return wrong


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _probe(paths: Sequence[str]) -> str:
    return _PROBE.format(paths=[os.path.abspath(path) for path in paths])


def _run(program: str) -> tuple[bool, str]:
    """Whether a program runs in the simulator's interpreter, and the last line that it said."""
    words = [*interpreter(), "-I", "-c", program]
    environ = {**os.environ, **environment()}
    try:
        run = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    lines = (run.stdout if run.returncode == 0 else run.stderr or run.stdout).strip().splitlines()
    return run.returncode == 0, lines[-1] if lines else f"exit code {run.returncode}"


def _replay(task: str, variation: int, paths: Sequence[str], timeout: float) -> Check:
    """Everything at once: launch, camera, live demonstration, its scene again, a hold, planning, success."""
    name, began = f"replay of {task}", time.monotonic()
    simulator = RLBench(image_size=(64, 64), views=("front",), reset_timeout=timeout, paths=tuple(paths))
    try:
        trial = Trial(task, variation, 0, "doctor")
        simulator.reset(trial)
        simulator.observe()
        held = simulator.step(simulator.pose())
        simulator.reset(trial)
        results = [simulator.step(action) for action in simulator.demonstrate()]
        figures = simulator.diagnostics()
    except (SimulatorCrash, EnvironmentServerError) as error:
        return Check(name, False, "an error", f"read it and {_PAGE}:\n{error}")
    finally:
        simulator.close()
    counted = ", ".join(f"{key} {value:g}" for key, value in figures.items())
    found = f"{len(results)} steps in {time.monotonic() - began:.0f} s, {counted}"
    if not held.reached:
        return Check(
            name,
            False,
            found,
            f"a step to the present pose moved or failed: report it to the project, with {_PAGE}",
        )
    return Check(name, results[-1].success, found, "not solved: try another task, or arm_mode ik")
