"""Results as the tests of a sweep write them, which several test files share."""

from ai_wam.files.atomic import write_json
from ai_wam.types import Clip
from benchmarks.evaluation.benchmark import Benchmark, TrialResult
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.results import assemble
from benchmarks.shifts import Shift, parts
from benchmarks.simulators.tabletop.simulator import Tabletop

CLIP = Clip(size=(32, 32))
POINTS = """
points:
  - {name: none}
  - {name: az45, shift: {cameras: {azimuth: [45, 45]}}, axis: azimuth, at: 45, unit: degrees}
  - {name: az60, shift: {cameras: {azimuth: [60, 60]}}, axis: azimuth, at: 60, unit: degrees}
"""
SOLVED = {"none": 9, "az45": 6, "az60": 2}


def written(point, record, words, solved=SOLVED, ceiling="success") -> None:
    """What a test of ten trials writes, of which the first ones are solved."""
    azimuth = {"none": None, "az45": 45, "az60": 60}[point.name]
    shift = None if azimuth is None else Shift(cameras=parts.CameraShift((azimuth, azimuth)))
    rules = EvaluationProtocol(trials_per_task=10, tasks=("reach_target",), shift=shift)
    made = Benchmark(Tabletop(image_size=(32, 32)), rules)
    trials = made.trials()
    reasons = ["success" if i < solved[point.name] else "timeout" for i in range(len(trials))]
    runs = {t.id: TrialResult(t, "go", r, 9, 1.0, 1, 1, 0, {}) for t, r in zip(trials, reasons, strict=True)}
    highest = {trial.id: TrialResult(trial, "go", ceiling, 9, 1.0, 1, 0, 0, {}) for trial in trials}
    described = rules.describe(made.simulator, CLIP)
    policy = {"name": "tasks.policy.PolicyControl", "config": {}, "checkpoint": record.checkpoint}
    arms = {"policy": runs, "ceiling": highest}
    rules_hash = rules.hash(made.simulator, CLIP)
    results = assemble(trials, arms, described, rules_hash, policy, drawn=made.drawn(trials))
    record.place(point).mkdir(parents=True, exist_ok=True)
    write_json(record.place(point) / "results.json", results)
