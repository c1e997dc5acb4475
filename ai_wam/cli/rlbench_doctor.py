"""`ai-wam rlbench-doctor`: what is missing before RLBench runs here."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.base import SimulatorCrash, Trial
from benchmarks.remote import EnvironmentServerError
from benchmarks.rlbench import PYTHON, RLBench, environment, interpreter

_PAGE = "docs/rlbench.md"
_PROBE = """
import sys
sys.path[:0] = {paths}
import json, numpy, pyrep, rlbench
print(json.dumps([sys.version.split()[0], numpy.__version__, rlbench.__version__]))
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
    for last in (_imports, lambda paths: _replay(task, variation, paths, timeout)):
        checks.append(last(paths))
        _tell(checks[-1])
        if not checks[-1].good:
            break
    missing = [check.name for check in checks if not check.good]
    if missing:
        raise SystemExit(f"RLBench does not run here yet: {', '.join(missing)}")
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
    libraries = sorted(path.name for path in Path(root).glob("libcoppeliaSim.so*"))
    found = f"{root} with {libraries[0]}" if libraries else f"{root} without libcoppeliaSim.so"
    return Check("COPPELIASIM_ROOT", bool(libraries), found, advice)


def _variables() -> list[Check]:
    """What the simulator's process is given, whatever this one has."""
    given, checks = environment(), []
    for name in ("LD_LIBRARY_PATH", "QT_QPA_PLATFORM_PLUGIN_PATH"):
        own = "as here" if os.environ.get(name) == given.get(name) else "set for the simulator's process only"
        found = f"{given[name]} ({own})" if name in given else "unknown while COPPELIASIM_ROOT is"
        checks.append(Check(name, name in given, found, "set COPPELIASIM_ROOT, the rest follows"))
    return checks


def _display() -> Check:
    wrapped = any(Path(word).name in ("xvfb-run", "vglrun") for word in interpreter())
    display = os.environ.get("DISPLAY")
    found = "from the interpreter's wrapper" if wrapped else f"DISPLAY={display}" if display else "none"
    advice = f'install xvfb and begin {PYTHON} with "xvfb-run -a", or start an X server and set DISPLAY'
    return Check("display", wrapped or bool(display), found, advice)


def _imports(paths: Sequence[str]) -> Check:
    advice = f"install PyRep and RLBench, at the commits of {_PAGE}, into that interpreter"
    probe = _PROBE.format(paths=[os.path.abspath(path) for path in paths])
    try:
        run = subprocess.run(
            [*interpreter(), "-I", "-c", probe],
            env={**os.environ, **environment()},
            capture_output=True,
            text=True,
            timeout=300,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("import rlbench", False, str(error), advice)
    lines = (run.stdout if run.returncode == 0 else run.stderr or run.stdout).strip().splitlines()
    if run.returncode:
        return Check("import rlbench", False, lines[-1] if lines else f"exit code {run.returncode}", advice)
    python, numpy, rlbench = json.loads(lines[-1])
    found = f"RLBench {rlbench}, numpy {numpy}, Python {python}"
    return Check("import rlbench", True, found, advice)


def _replay(task: str, variation: int, paths: Sequence[str], timeout: float) -> Check:
    """Everything at once: launch, camera, live demonstration, the same scene again, planning, success."""
    name, began = f"replay of {task}", time.monotonic()
    simulator = RLBench(image_size=(64, 64), views=("front",), reset_timeout=timeout, paths=tuple(paths))
    try:
        simulator.reset(Trial(task, variation, 0, "doctor"))
        simulator.observe()
        results = [simulator.step(action) for action in simulator.demonstrate()]
        figures = simulator.diagnostics()
    except (SimulatorCrash, EnvironmentServerError) as error:
        return Check(name, False, "an error", f"read it and {_PAGE}:\n{error}")
    finally:
        simulator.close()
    counted = ", ".join(f"{key} {value:g}" for key, value in figures.items())
    found = f"{len(results)} steps in {time.monotonic() - began:.0f} s, {counted}"
    return Check(name, results[-1].success, found, "not solved: try another task, or arm_mode ik")
