"""The harness benchmark counts what it says it counts."""

import copy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ai_wam.types import Clip
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.simulators.rlbench.simulator import RLBench
from benchmarks.simulators.tabletop.simulator import Tabletop
from benchmarks.speed.harness import Clock, _resident, measure, print_soak, soak, tiny_wan


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
    steps, simulator, harness, policy = measure(protocol, Clip(size=(32, 32)))
    assert steps == 10
    assert min(simulator, harness, policy) > 0


@pytest.mark.slow
def test_the_harness_is_a_twentieth_of_a_trial_with_a_tiny_model():
    clip = Clip(size=(128, 128))
    protocol = EvaluationProtocol("receding", 8, 1.0, 1, ("reach_target", "pick_up_cup"))
    _, simulator, harness, policy = measure(protocol, clip, tiny_wan(clip))
    assert harness / (simulator + harness + policy) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tabletop", "rlbench"])
def test_memory_does_not_grow_over_500_trials(kind):
    clip = Clip(size=(64, 64))
    double = str(Path(__file__).parents[1] / "doubles" / "rlbench_double")
    made = {
        "tabletop": lambda: Tabletop(image_size=clip.size, views=clip.views),
        "rlbench": lambda: RLBench(image_size=clip.size, paths=(double,)),
    }[kind]()
    # Each of four simulators keeps 64 demonstrations.
    warm_up, tasks = (40, ()) if kind == "tabletop" else (300, ("reach_target",))
    before, after = soak(made, 500, clip, tasks, warm_up)
    assert after / before - 1 <= 0.10


def test_memory_of_descendants_counts():
    before = _resident()
    program = "x = bytearray(50_000_000); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert _resident() - before > 50
        child.communicate(b"\n")


def test_a_soak_tells_its_growth(capsys):
    print_soak(4, warm_up=4)
    assert "growth" in capsys.readouterr().out
