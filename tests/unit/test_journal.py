"""An interrupted test resumes, and ends as if it had not been interrupted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from lightning.pytorch import Trainer

from ai_wam.types import Clip
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.journal import Journal
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.trial_run import TrialResult
from benchmarks.evaluation.trial_video import TrialVideo
from benchmarks.policies import HoldStill
from benchmarks.simulator import Trial
from benchmarks.simulators.tabletop.simulator import Tabletop
from benchmarks.trial_datamodule import TrialDataModule
from tasks.fixed_policy import FixedPolicy

CLIP = Clip(size=(32, 32))
SIMULATOR = Tabletop(rig="framed", image_size=(32, 32))
RULES = EvaluationProtocol(max_seconds=0.5, trials_per_task=4, tasks=("reach_target",))
IDENTITY = {"protocol": {"max_seconds": 0.5}, "policy": {"checkpoint_hash": "abc"}}

pytestmark = [
    # Lightning's own use of a torch function that torch has renamed.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    # Trials come in order from one process: there is nothing for data workers to do.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # No accelerator is wanted here even where there is one.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


class PowerCut(Exception):
    pass


class Mortal(HoldStill):
    """Ends its process, as it were, in the middle of a trial."""

    def __init__(self, last=99):
        super().__init__()
        self.begun, self.last = [], last

    def reset(self, episodes):
        self.begun += episodes

    def predict_action(self, observation):
        if len(self.begun) > self.last:
            raise PowerCut
        return super().predict_action(observation)


def evaluate(out, policy, rules=RULES, videos=1):
    benchmark = Benchmark(SIMULATOR, rules, parallel=1)
    data = TrialDataModule(benchmark, CLIP, out=out, videos=videos, references=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(accelerator="cpu", enable_model_summary=False, **quiet).test(
        FixedPolicy(policy, CLIP), datamodule=data, verbose=False
    )
    return (out / "results.json").read_text(), (out / "report.html").read_text()


def test_an_interrupted_test_continues_and_ends_as_if_it_had_not_been(tmp_path):
    with pytest.raises(PowerCut):
        evaluate(tmp_path / "cut", Mortal(last=2))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["trials-00000.jsonl"]
    rest = Mortal()
    again, page = map(_undated, evaluate(tmp_path / "cut", rest))
    whole, other = map(_undated, evaluate(tmp_path / "whole", Mortal()))
    assert rest.begun == [trial.id for trial in RULES.trials(SIMULATOR)[2:]]
    assert again == whole
    assert page.count("<video") == other.count("<video") == 1
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "recordings",
        "report.html",
        "results.json",
        "seen.png",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rules": replace(RULES, max_seconds=0.4)}, "protocol.max_seconds: 0.5 before, 0.4 now"),
        ({"videos": 3}, "videos: 1 before, 3 now"),
    ],
)
def test_another_test_does_not_continue_with_it(tmp_path, change, words):
    with pytest.raises(PowerCut):
        evaluate(tmp_path, Mortal(last=1))
    with pytest.raises(ValueError, match=rf"(?s){words}.*--data.out, or delete the file"):
        evaluate(tmp_path, Mortal(), **change)


def result(index, **changes):
    trial = Trial("reach_target", 0, index)
    return replace(
        TrialResult(trial, "go", "timeout", 20, 1.0, 1, 0, 0, {"gap": math.nan, "far": 0.1}), **changes
    )


def test_a_result_comes_back_as_it_was(tmp_path):
    film = TrialVideo(("rollout",), ("front", "wrist"), b"video", b"poster", b"first", b"numbers")
    figures = {"seams": ((1.5, 0.1), (2.0, 0.0)), "position_std": (0.1, math.nan), "scene": "s"}
    kept = result(0, video=film, failure={"verdict": "unknown"}, error="gone", **figures)
    Journal(tmp_path, 0, IDENTITY).add({"policy": {kept.trial.id: kept}}, {"rlbench": "1"})
    back = Journal(tmp_path, 1, IDENTITY)
    (again,) = back.finished["policy"].values()
    np.testing.assert_equal(again.diagnostics, kept.diagnostics)
    assert again.to_json() == kept.to_json()
    assert (again.trial, again.video, again.seams) == (kept.trial, kept.video, kept.seams)
    assert back.world == {"rlbench": "1"}


def test_a_line_cut_short_is_a_trial_not_run_and_hides_no_other(tmp_path):
    results = [result(index) for index in range(3)]
    journal = Journal(tmp_path, 0, IDENTITY)
    for one in results[:2]:
        journal.add({"policy": {one.trial.id: one}}, {})
    text = journal.path.read_bytes()
    journal.path.write_bytes(text[:-20])
    again = Journal(tmp_path, 0, IDENTITY)
    assert list(again.finished["policy"]) == [results[0].trial.id]
    again.add({"policy": {results[2].trial.id: results[2]}}, {})
    ids = list(Journal(tmp_path, 0, IDENTITY).finished["policy"])
    assert ids == [results[0].trial.id, results[2].trial.id]


def test_a_file_cut_short_in_its_first_line_begins_anew(tmp_path):
    (tmp_path / "trials-00000.jsonl").write_text('{"test": {"proto')
    journal = Journal(tmp_path, 0, IDENTITY)
    assert journal.finished == {}
    journal.add({"policy": {result(0).trial.id: result(0)}}, {})
    assert len(Journal(tmp_path, 0, IDENTITY).finished["policy"]) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line, "'test-reach_target-v00-00000' is listed twice"),
        (lambda line: line["arms"]["policy"].update(trial="x"), "'x' is no trial's name"),
        (lambda line: line["arms"]["policy"].update(stop_reason=math.nan), "nan"),
        (lambda line: line["arms"]["policy"].update(steps=-3), "the counts (-3, 1, 0, 0)"),
        (lambda line: line["arms"]["policy"].update(seconds=math.nan), "took nan seconds"),
        (lambda line: line["arms"]["policy"].pop("seams"), "KeyError('seams')"),
        *(
            (lambda line, name=name: line["arms"]["policy"].update({name: [[]]}), f"has {name} [[]]")
            for name in ("prompt", "scene", "diagnostics", "error", "failure")
        ),
        (lambda line: line["arms"]["policy"].update(diagnostics={"a": "b"}), "are no numbers"),
        (lambda line: line["arms"]["policy"].update(position_std="ab"), "are no numbers"),
        (lambda line: line["arms"].update(floor=None), "Type"),
        (lambda line: line.update(arms={}), "not enough values"),
        (lambda line: line.update(arms=3), "AttributeError"),
    ],
)
def test_a_line_that_is_no_result_of_the_test_is_refused(tmp_path, change, words):
    journal = Journal(tmp_path, 0, IDENTITY)
    journal.add({"policy": {result(0).trial.id: result(0)}}, {})
    *_, text = journal.path.read_text().splitlines()
    line = json.loads(text)
    change(line)
    with journal.path.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"trials-00000.jsonl: a line .*; delete the file to begin") as error:
        Journal(tmp_path, 0, IDENTITY)
    assert words in str(error.value)


def test_another_checkpoint_is_refused_whichever_process_wrote(tmp_path):
    Journal(tmp_path, 3, IDENTITY).add({"policy": {result(0).trial.id: result(0)}}, {})
    other = IDENTITY | {"policy": {"checkpoint_hash": "xyz"}}
    with pytest.raises(ValueError, match=r"trials-00003.*\n  policy.checkpoint_hash: abc before, xyz now"):
        Journal(tmp_path, 0, other)


def _undated(text):
    if not text.startswith("{"):
        return text
    content = json.loads(text)
    del content["created"]
    return content
