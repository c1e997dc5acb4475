"""RLBench over the in-repo double of its names, as the tests of the simulator and of trials in it use it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.simulator import Trial
from benchmarks.simulators.rlbench.simulator import RLBench

DOUBLE = str(Path(__file__).parent / "doubles" / "rlbench_double")
SIZE = (48, 64)
TRIAL = Trial("reach_target", 3, 5)


def make(**arguments: Any) -> RLBench:
    return RLBench(**{"image_size": SIZE, "paths": (DOUBLE,), "step_timeout": 20.0} | arguments)


def faults(setenv: Callable[[str, str], None], made: list[RLBench]) -> Callable[..., RLBench]:
    """Makes simulators whose process goes wrong at a certain call, and lists them."""

    def fault(fault: str, **arguments: Any) -> RLBench:
        setenv("RLBENCH_DOUBLE", fault)
        made.append(make(**arguments))
        return made[-1]

    return fault
