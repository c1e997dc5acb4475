"""Fixtures of several files: simulators over the double of RLBench."""

from collections.abc import Callable, Iterator

import pytest
import rlbench_twin

from benchmarks.simulators.rlbench.simulator import RLBench


@pytest.fixture(scope="module")
def rlbench_simulator() -> Iterator[RLBench]:
    made = rlbench_twin.make()
    yield made
    made.close()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RLBench]]:
    made: list[RLBench] = []
    yield rlbench_twin.faults(monkeypatch.setenv, made)
    for simulator in made:
        simulator.close()
