"""The harness benchmark counts what it says it counts."""

import copy
import time

from ai_wam.types import Clip
from benchmarks.protocol import EvaluationProtocol
from benchmarks.speed.harness import Clock, measure, print_soak


def test_copies_share_a_clock_that_counts_by_owner():
    clock = Clock()
    with copy.deepcopy(clock).of("policy"):
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
    assert clock.policy >= 0.02
    assert clock.simulator == 0


def test_every_part_of_a_trial_takes_time():
    protocol = EvaluationProtocol("receding", 2, 0.5, 1, ("reach_target",))
    steps, simulator, harness = measure(protocol, Clip(size=(32, 32)))
    assert steps == 10
    assert simulator > 0
    assert harness > 0


def test_a_soak_tells_its_growth(capsys):
    print_soak(4)
    assert "growth" in capsys.readouterr().out
