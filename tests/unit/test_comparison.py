"""Two results of one protocol: what is paired, what is refused, what is listed apart."""

import json
import sys
from dataclasses import replace

import pytest

from ai_wam.cli import main
from ai_wam.files.atomic import write_json
from ai_wam.types import Clip
from benchmarks.evaluation.benchmark import TrialResult
from benchmarks.evaluation.comparison import comparison_table, differences, paired
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.results import assemble, read_results
from benchmarks.report.text_tables import results_table
from benchmarks.simulator import CHANGED, Trial
from benchmarks.simulators.tabletop.simulator import Tabletop

CLIP = Clip(size=(32, 32))
SIMULATOR = Tabletop(rig="framed", image_size=(32, 32))
TASKS = ("reach_target", "close_drawer")
# Solved by both, by the first alone, by the second alone, by none.
FIRST = [True] * 3 + [True] * 8 + [False] * 1 + [False] * 4
SECOND = [True] * 3 + [False] * 8 + [True] * 1 + [False] * 4


def made(solved, ceiling=None, policy="tasks.policy.PolicyControl", **rules):
    """Results whose two tasks went as told."""
    rules = EvaluationProtocol(trials_per_task=len(FIRST), tasks=TASKS, **rules)
    trials = rules.trials(SIMULATOR)
    reasons = dict(zip(trials, solved, strict=True))
    arms = {"policy": {trial.id: result(trial, good) for trial, good in reasons.items()}}
    if ceiling is not None:
        arms["ceiling"] = {trial.id: result(trial, ceiling[trial.task]) for trial in trials}
    described = rules.describe(SIMULATOR, CLIP)
    told = {"name": policy, "config": {}, "checkpoint": "last.ckpt"}
    return assemble(trials, arms, described, rules.hash(SIMULATOR, CLIP), told)


def result(trial: Trial, good: bool | str):
    reason = good if isinstance(good, str) else "success" if good else "timeout"
    return TrialResult(trial, "go", reason, 20, 1.0, 1, 0, 0, {})


def test_outcomes_are_paired_by_id_whatever_the_order():
    first, second = made(FIRST + SECOND), made(SECOND + FIRST)
    second["trials"].reverse()
    reach = paired(first, second, ["reach_target"])
    assert (reach.only_first, reach.only_second) == (8, 1)
    assert reach.p == 20 / 512  # 2 * (1 + 9) / 2^9, by hand
    assert paired(first, second, TASKS).p == 1  # nine against nine


def test_the_table_counts_every_task_and_all():
    rows = {line.split()[0]: line.split() for line in table(FIRST + FIRST, SECOND + FIRST)}
    assert rows["reach_target"][1:] == ["16", "11", "(69", "%)", "4", "(25", "%)", "-44", "8", "1", "0.0391"]
    assert rows["close_drawer"][-3:] == ["0", "0", "1"]
    assert rows["all"][1:3] == ["32", "22"]
    assert rows["a:"][1:3] == ["PolicyControl", "last.ckpt"]


def table(first, second, **rules):
    text = comparison_table(made(first, **rules), made(second, **rules))
    return [line for line in text.splitlines() if line]


def test_a_task_with_a_low_ceiling_is_apart_and_in_no_sum():
    low = {"reach_target": True, "close_drawer": False}
    one = made(FIRST + SECOND, ceiling=low)
    assert one["low_ceiling"] == ["close_drawer"]
    assert one["mean"] == {"policy": 11 / 16, "ceiling": 1.0}
    lines = comparison_table(one, made(SECOND + SECOND)).splitlines()  # in either result
    title = lines.index("in no mean: the ceiling is below 50 %")
    total = next(line for line in lines if line.startswith("all"))
    assert total.split()[1] == "16"
    assert lines[title + 1].split()[0] == "close_drawer"
    printed = results_table(one).splitlines()
    assert printed[1].split()[0] == "reach_target"
    cells = ["mean", "over", "tasks", "16", "69", "%", "[44,", "86]", "100", "%", "[81,", "100]"]
    assert printed[2].split() == cells
    assert printed[-1].split()[0] == "close_drawer"


def test_a_mean_over_no_task_is_none():
    nothing = made(FIRST + FIRST, ceiling=dict.fromkeys(TASKS, False))
    assert nothing["mean"] == {"policy": None, "ceiling": None}
    assert "none" in results_table(nothing)
    assert "all" not in comparison_table(nothing, nothing).split()
    at_the_bar = made(FIRST + FIRST, ceiling=dict.fromkeys(TASKS, False), min_ceiling=0.0)
    assert at_the_bar["low_ceiling"] == []


def test_crashes_count_as_not_solved_and_are_told():
    lines = table(FIRST + FIRST, ["crash", *FIRST[1:], *FIRST])
    assert lines[-1] == "lost to crashes of the simulator, counted as not solved: a 0, b 1"
    assert next(line for line in lines if line.startswith("reach_target")).split()[-3:] == ["1", "0", "1"]


def in_scenes(results, scene):
    for number, trial in enumerate(results["trials"]):
        trial["policy"]["scene"] = scene(number)
    return results


def test_trials_of_other_scenes_are_no_pairs_and_are_told():
    """A simulator may draw another scene from the same seed in another process."""
    first = in_scenes(made(FIRST + FIRST), str)
    second = in_scenes(made(SECOND + FIRST), lambda n: str(n) if n >= 11 else "other")
    text = comparison_table(first, second)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["reach_target"][1] == "5"  # of 16
    assert rows["all"][1] == "21"
    assert "11 trials are in no pair: their scenes differ between a and b" in text
    lost = in_scenes(made(FIRST + FIRST), lambda n: "" if n == 0 else str(n))  # before it had one
    assert paired(first, lost, TASKS).first == tuple(FIRST + FIRST)
    changed = in_scenes(made(FIRST + FIRST), lambda n: "changed 1" if n == 0 else str(n))
    assert len(paired(changed, changed, TASKS).first) == 31
    with pytest.raises(ValueError, match="scenes of all 32 trials differ"):
        comparison_table(first, in_scenes(made(FIRST + FIRST), lambda n: f"other {n}"))
    whole_task = in_scenes(made(FIRST + FIRST), lambda n: "other" if n < 16 else str(n))
    assert "reach_target" not in comparison_table(first, whole_task).split()


def test_a_scene_that_was_not_asked_for_counts_in_no_arm_and_is_said():
    rules = EvaluationProtocol(trials_per_task=4, tasks=("reach_target",))
    trials = rules.trials(SIMULATOR)

    def results(policy_scenes, floor_scenes):
        arms = {
            arm: {t.id: replace(result(t, r), scene=s) for t, (r, s) in zip(trials, runs, strict=True)}
            for arm, runs in (
                ("policy", zip(["success", "crash", "timeout", "success"], policy_scenes, strict=True)),
                ("ceiling", zip(["success"] * 4, "abcd", strict=True)),
                ("floor", zip(["timeout", "timeout", "timeout", "crash"], floor_scenes, strict=True)),
            )
        }
        told = {"name": "x.Y", "config": {}, "checkpoint": None}
        described = rules.describe(SIMULATOR, CLIP)
        return assemble(trials, arms, described, rules.hash(SIMULATOR, CLIP), told)

    found = results(["a", f"{CHANGED} b", "c", "d"], ["a", "b", "c", f"{CHANGED} d"])
    summary = found["tasks"]["reach_target"]
    rates = {arm: (summary[arm]["successes"], summary[arm]["trials"]) for arm in summary["crashes"]}
    assert rates == {"policy": (2, 3), "ceiling": (3, 3), "floor": (0, 3)}
    assert summary["crashes"] == {"policy": 0, "ceiling": 0, "floor": 0}
    said = "the simulator did not bring back the scene asked for: policy 1, ceiling 0, floor 1"
    assert said in results_table(found)
    nothing = results([CHANGED] * 4, ["a", "b", "c", "d"])
    assert nothing["mean"] == {"policy": None, "ceiling": None, "floor": None}
    assert "none" in results_table(nothing)


def test_chunks_of_different_length_are_told():
    first, second = made(FIRST + FIRST), made(FIRST + FIRST)
    first["policy"]["frames"], second["policy"]["frames"] = 9, 41
    assert "chunks of different length: a 9 frames, b 41" in comparison_table(first, second)


def test_the_ceiling_is_of_trials_that_the_simulator_kept_and_of_the_policys_scenes():
    rules = EvaluationProtocol(trials_per_task=4, tasks=("reach_target",))
    trials = rules.trials(SIMULATOR)

    def arm(reasons, scenes):
        return {t.id: replace(result(t, r), scene=s) for t, r, s in zip(trials, reasons, scenes, strict=True)}

    arms = {
        "policy": arm(["timeout", "timeout", "crash", "success"], "abcd"),
        "ceiling": arm(["success", "crash", "success", "timeout"], "abcX"),
    }
    told = {"name": "x.Y", "config": {}, "checkpoint": None}
    described = rules.describe(SIMULATOR, CLIP)
    results = assemble(trials, arms, described, rules.hash(SIMULATOR, CLIP), told)
    summary = results["tasks"]["reach_target"]
    assert (summary["ceiling"]["successes"], summary["ceiling"]["trials"]) == (2, 2)
    assert (summary["policy"]["successes"], summary["policy"]["trials"]) == (1, 4)
    assert (summary["crashes"], summary["other_scenes"]) == ({"policy": 1, "ceiling": 1}, 1)
    printed = results_table(results)
    assert (
        "lost to crashes of the simulator (not solved; left out of the ceiling): policy 1, ceiling 1"
        in printed
    )
    assert "1 trials had another scene" in printed
    arms["ceiling"] = arm(["crash"] * 4, "abcd")
    unknown = assemble(trials, arms, described, rules.hash(SIMULATOR, CLIP), told)
    assert (unknown["low_ceiling"], unknown["tasks"]["reach_target"]["ceiling"]["rate"]) == (
        ["reach_target"],
        None,
    )
    assert "none" in results_table(unknown)


def test_a_table_without_a_ceiling_says_so():
    assert "no ceiling was run" in results_table(made(FIRST + FIRST))
    assert "no ceiling was run" not in results_table(made(FIRST + FIRST, ceiling=dict.fromkeys(TASKS, True)))


def test_a_policy_that_wraps_another_is_named_with_it():
    one = made(FIRST + FIRST, policy="tasks.fixed_policy.FixedPolicy")
    one["policy"]["config"] = {"policy": {"class_path": "benchmarks.policies.Expert"}}
    assert comparison_table(one, one).splitlines()[0].startswith("a: FixedPolicy: Expert ")


def test_other_software_is_told():
    other = made(FIRST + FIRST)
    other["versions"] = other["versions"] | {"mujoco": "0.1"}
    assert comparison_table(made(FIRST + FIRST), other).splitlines()[-1].endswith("against 0.1")


def test_different_rules_are_refused_by_name():
    with pytest.raises(ValueError, match=r"different protocols.*\n  max_seconds: 8.0 against 4.0\n"):
        comparison_table(made(FIRST + FIRST), made(FIRST + FIRST, max_seconds=4.0))
    with pytest.raises(
        ValueError, match=r"execute_frames: \(absent\) against 4\n  execution: one_shot against"
    ):
        comparison_table(made(FIRST + FIRST), made(FIRST + FIRST, execution="receding"))


def test_other_trials_are_refused():
    other = made(FIRST + FIRST)
    dropped = other["trials"].pop()
    with pytest.raises(ValueError, match=f"has 32 trials, the other 31: .*{dropped['id']}"):
        comparison_table(made(FIRST + FIRST), other)


def test_differences_are_named_from_the_top():
    one = {"a": 1, "b": {"c": [1, 2], "d": 0}}
    assert list(differences(one, {"b": {"c": [1, 3], "d": 0}, "e": None})) == [
        ("a", 1, "(absent)"),
        ("b.c", [1, 2], [1, 3]),
        ("e", "(absent)", None),
    ]


@pytest.fixture
def files(tmp_path):
    write_json(tmp_path / "a.json", made(FIRST + FIRST))
    write_json(tmp_path / "b.json", made(SECOND + FIRST))
    write_json(tmp_path / "c.json", made(SECOND + FIRST, max_seconds=4.0))
    return tmp_path


def compare(monkeypatch, *paths):
    monkeypatch.setattr(sys, "argv", ["ai-wam", "compare", *map(str, paths)])
    main()


def test_the_command_prints_the_table(files, monkeypatch, capsys):
    compare(monkeypatch, files / "a.json", files / "b.json")
    expected = comparison_table(read_results(files / "a.json"), read_results(files / "b.json"))
    assert capsys.readouterr().out == expected + "\n"


def test_the_command_refuses_what_does_not_compare(files, monkeypatch):
    with pytest.raises(SystemExit, match="ai-wam compare: these results follow different protocols"):
        compare(monkeypatch, files / "a.json", files / "c.json")
    with pytest.raises(SystemExit, match="No such file"):
        compare(monkeypatch, files / "a.json", files / "none.json")


def test_a_file_that_is_no_result_or_was_edited_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds a list, expected a JSON object; give the results"):
        read_results(path)
    path.write_text('{"schema": 2, "trials": []}')
    with pytest.raises(ValueError, match=r"its schema is 2, not 3; give .* or test again"):
        read_results(path)
    path.write_text('{"schema": 3, "trials": []}')
    with pytest.raises(ValueError, match=r"lacks \['policy', 'protocol', 'protocol_hash'"):
        read_results(path)
    edited = made(FIRST + FIRST)
    edited["protocol"]["max_seconds"] = 99.0
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="it was edited"):
        read_results(path)


def twice(content):
    content["trials"].append(content["trials"][0])


def renamed(name):
    return lambda content: content["trials"][0].update(id=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (twice, "'test-reach_target-v00-00000' is listed twice"),
        (
            lambda c: c["trials"].pop(),
            "has 12 of 16 solved by policy, its trials 12 of 15",
        ),
        (lambda c: c["trials"][0]["policy"].update(outcome=float("nan")), "ended in nan"),
        (lambda c: c["trials"][0]["policy"].update(outcome="failure"), "ended in 'failure' for the reason"),
        (lambda c: c["trials"][0]["policy"].update(stop_reason="bored"), "for the reason 'bored'"),
        (lambda c: c["trials"][0]["policy"].update(scene=3), "has the scene 3, expected"),
        (lambda c: c["trials"][0]["ceiling"].update(outcome="failure"), "ceiling, ended in 'failure'"),
        (lambda c: c["tasks"]["reach_target"]["ceiling"].update(trials=3), "16 of 3 solved by ceiling"),
        (lambda c: c["tasks"]["reach_target"]["ceiling"].update(rate=0.1), "the rate 0.1 of ceiling"),
        (
            lambda c: c.update(low_ceiling=["close_drawer"]),
            "`low_ceiling` is ['close_drawer'], by the ceilings",
        ),
        (lambda c: c.update(low_ceiling="reach_target"), "`low_ceiling` is 'reach_target', by the ceilings"),
        (lambda c: c.update(mean=None), "lacks or misplaces Type"),
        (lambda c: c["trials"][0]["policy"].pop("scene"), "lacks or misplaces KeyError('scene')"),
        (lambda c: c["tasks"]["reach_target"]["policy"].update(successes=16), "has 16 of 16 solved"),
        (lambda c: c["tasks"].pop("close_drawer"), "has another task or variation"),
        (renamed("test-reach_target-v00--0001"), "is no trial's name"),
        (renamed("test-close_drawer-v00-00099"), "has another task or variation"),
        (renamed(3), "lacks or misplaces Type"),
        (lambda c: c.update(trials=3), "lacks or misplaces Type"),
        (lambda c: c.update(tasks=[]), ""),
    ],
)
def test_results_whose_trials_are_not_those_of_the_test_are_refused(tmp_path, change, words):
    ceiling = {"reach_target": True, "close_drawer": True}
    content = made([True] * 12 + [False] * 4 + [True] * 12 + [False] * 4, ceiling)
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "results.json") == json.loads(json.dumps(content))
    change(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"results.json: .* give the file as `ai-wam test` wrote it"
    ) as error:
        read_results(tmp_path / "results.json")
    assert words in str(error.value)
