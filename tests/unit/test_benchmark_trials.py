import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cli.ray_trials import merge
from ai_wam.types import ActionChunk, Clip
from ai_wam.utils.ema import AveragedWeights
from benchmarks.evaluation.benchmark import Benchmark, TrialResult
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.evaluation.results import assemble, check_complete
from benchmarks.policies import Expert, HoldStill
from benchmarks.rollout_callback import RolloutCallback
from benchmarks.simulators.tabletop.simulator import Tabletop
from benchmarks.trial_datamodule import TrialBatch, TrialDataModule
from tasks.fixed_policy import FixedPolicy

SIZE = (32, 32)
CLIP = Clip(size=SIZE, views=("front", "left_shoulder"))
SIMULATOR = Tabletop(rig="framed", image_size=SIZE)
PROTOCOL = EvaluationProtocol(max_seconds=2.0, trials_per_task=3, tasks=("reach_target",))
CONFIGS = Path(__file__).parents[2] / "configs" / "benchmark"
QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}

pytestmark = [
    # Lightning's own use of a torch function that torch has renamed.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    # Trials come in order from one process: there is nothing for data workers to do.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # The learner below has a frozen part in evaluation mode on purpose.
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),
    # No accelerator is wanted here even where there is one.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


def test_a_fixed_policy_is_tested_through_the_trainer(tmp_path):
    policy = Expert(SIMULATOR)
    data = TrialDataModule(Benchmark(SIMULATOR, PROTOCOL, parallel=2), CLIP, out=tmp_path / "new", videos=1)
    trainer = Trainer(logger=False, **QUIET)
    (logged,) = trainer.test(FixedPolicy(policy, CLIP), datamodule=data, verbose=False)
    policy.close()
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == ["recordings", "report.html", "results.json", "seen.png"]
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results == data.results
    summary = results["tasks"]["reach_target"]
    assert summary["policy"] == {
        "successes": 3,
        "trials": 3,
        "rate": 1.0,
        "interval": pytest.approx([0.438503, 1]),
    }
    assert summary["floor"]["successes"] == summary["blind"]["successes"] == 0
    assert summary["ceiling"]["trials"] == 3
    assert set(summary["diagnostics"]) >= {"any_sphere", "nearest_is_named"}
    assert results["mean"] == {arm: summary[arm]["rate"] for arm in ("policy", "ceiling", "floor", "blind")}
    assert results["protocol_hash"] == PROTOCOL.hash(SIMULATOR, CLIP)
    assert results["protocol"] == PROTOCOL.describe(SIMULATOR, CLIP)
    assert results["policy"]["name"] == "tasks.fixed_policy.FixedPolicy"
    assert results["policy"]["config"] == {}  # built by hand; the command line keeps its configuration
    for trial, expected in zip(results["trials"], PROTOCOL.trials(SIMULATOR), strict=True):
        assert (trial["id"], trial["seed"]) == (expected.id, expected.seed)
        assert (trial["policy"]["outcome"], trial["policy"]["stop_reason"]) == ("success", "success")
        assert trial["floor"]["stop_reason"] == "timeout"
    assert logged["test/success/policy"] == 1
    assert logged["test/reach_target/floor"] == 0
    assert (tmp_path / "new" / "report.html").read_text().count("<video") == 1
    # The hook is gone with the data, so the same trainer can test something else.
    assert not any("Collector" in type(callback).__name__ for callback in trainer.callbacks)


def test_the_results_of_another_policy_are_not_written_over(tmp_path):
    (tmp_path / "results.json").write_text('{"policy": {"name": "x.Y", "checkpoint": "best.ckpt"}}')
    policy = Expert(SIMULATOR)
    data = TrialDataModule(Benchmark(SIMULATOR, PROTOCOL, parallel=2), CLIP, out=tmp_path)
    words = r"another policy: best.ckpt there, tasks.fixed_policy.FixedPolicy of its own settings here; give"
    with pytest.raises(ValueError, match=words):
        Trainer(logger=False, **QUIET).test(FixedPolicy(policy, CLIP), datamodule=data, verbose=False)
    policy.close()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_benchmark_file_gives_trials(path):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = parser.parse_args([f"--data={path}", "--data.clip.size=[32,48]"])
    data = parser.instantiate_classes(config).data
    assert data.clip.size == (32, 48)
    tasks = {trial.task for trial in data.benchmark.trials()}
    assert tasks == set(data.benchmark.protocol.tasks or data.benchmark.simulator.tasks())


class TwoReadings(Expert):
    """Acts as the expert does, and can read its actions as holding still."""

    def by_decoder(self, knows_std):
        return {} if knows_std else {"head": HoldStill()}


class Told(FixedPolicy):
    """Passes the readings on too."""

    def by_decoder(self, knows_std):
        return self.policy.by_decoder(knows_std)


@pytest.mark.parametrize("asked", [True, False])
def test_every_reading_of_a_policy_is_an_arm(tmp_path, asked):
    data = TrialDataModule(
        Benchmark(SIMULATOR, PROTOCOL, parallel=2),
        CLIP,
        out=tmp_path,
        videos=0,
        references=False,
        decoders=asked,
    )
    Trainer(logger=False, **QUIET).test(Told(TwoReadings(SIMULATOR), CLIP), datamodule=data, verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["mean"] == ({"policy": 1.0, "head": 0.0} if asked else {"policy": 1.0})
    assert ("learned action head" in (tmp_path / "report.html").read_text()) == asked


def test_trials_are_for_testing_only():
    data = TrialDataModule(Benchmark(SIMULATOR, PROTOCOL), CLIP)
    with pytest.raises(ValueError, match="no data to fit"):
        Trainer(logger=False, max_steps=1, **QUIET).fit(Learner(CLIP), datamodule=data)


def test_trials_that_did_not_run_are_an_error(tmp_path):
    data = TrialDataModule(Benchmark(SIMULATOR, PROTOCOL, parallel=2), CLIP, out=tmp_path, references=False)
    trainer = Trainer(logger=False, limit_test_batches=1, **QUIET)
    with pytest.raises(RuntimeError, match=r"policy: 2 results for 3 trials; missing .*trials_per_task"):
        trainer.test(FixedPolicy(HoldStill(), CLIP), datamodule=data, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["trials-00000.jsonl"]  # what has run is not lost


def test_one_trial_alone_goes_as_in_the_full_run(tmp_path):
    def tested(trials, parallel):
        policy = Expert(SIMULATOR, tokenizer=ActionImageTokenizer())
        made = Benchmark(SIMULATOR, PROTOCOL, parallel)
        data = TrialDataModule(made, CLIP, tmp_path, references=False, trials=trials)
        Trainer(logger=False, **QUIET).test(FixedPolicy(policy, CLIP), datamodule=data, verbose=False)
        policy.close()
        return data.results

    whole = tested(None, parallel=3)
    third = whole["trials"][2]
    alone = tested([third["id"]], parallel=1)
    assert alone["trials"] == [third]
    assert alone["protocol_hash"] == whole["protocol_hash"]
    assert alone["tasks"]["reach_target"]["policy"]["trials"] == 1
    assert "1 of the protocol&#39;s 3 trials" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["test-reach_target-v00-00000", "x"], r"trials \['x'\] \(1 of 2\) are not the protocol's"),
        ([], "trials is empty"),
    ],
)
def test_trials_of_another_protocol_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        TrialDataModule(Benchmark(SIMULATOR, PROTOCOL), CLIP, trials=ids)


@pytest.mark.parametrize("share", [(2, 2), (-1, 2)])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"share is .*; it is \(k, n\) with 0 <= k < n"):
        TrialDataModule(Benchmark(SIMULATOR, PROTOCOL), CLIP, share=share)


def test_shares_that_overlap_or_lack_trials_are_refused(tmp_path):
    trials, told = (
        PROTOCOL.trials(SIMULATOR),
        {"protocol": {}, "protocol_hash": "", "policy": {}, "versions": {}},
    )
    run = TrialResult(trials[0], "go", "timeout", 20, 1.0, 1, 0, 0, {})
    one = (trials, {"policy": {trials[0].id: run}}, told)
    with pytest.raises(RuntimeError, match="were run by two workers"):
        merge([one, one], tmp_path)
    with pytest.raises(RuntimeError, match=r"policy: 1 results for 3 trials"):
        merge([one], tmp_path)


def test_totals_are_exact():
    trials = PROTOCOL.trials(SIMULATOR)
    ids = [trial.id for trial in trials]
    check_complete("policy", trials, ids[::-1])
    with pytest.raises(RuntimeError, match="repeated 1"):
        check_complete("policy", trials, [*ids, ids[0]])
    with pytest.raises(RuntimeError, match="foreign"):
        check_complete("policy", trials, [*ids[:2], "test-other-v00-00000"])
    with pytest.raises(RuntimeError, match="0 results for 3 trials"):
        assemble(trials, {"policy": {}}, {}, "", {})


def test_batches_survive_a_transfer_and_remember_the_device():
    batch = TrialBatch(
        Benchmark(SIMULATOR, PROTOCOL), PROTOCOL.trials(SIMULATOR), CLIP, frozenset(), False, {}
    )
    moved = Trainer(logger=False, **QUIET).strategy.batch_to_device(batch, torch.device("meta"))
    assert moved is batch
    assert batch.device == torch.device("meta")


class Learner(LightningModule):
    """A policy with a weight that notes how it was called."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.weight = clip, torch.nn.Parameter(torch.zeros(()))
        self.frozen = torch.nn.Dropout().eval()
        self.drop = torch.nn.Dropout()
        self.seen = []

    def reset(self, episodes):
        torch.rand(3)  # a policy may use up random numbers

    def predict_action(self, observation):
        self.seen.append((self.training, self.drop.training, self.weight.item(), torch.is_grad_enabled()))
        sure = torch.ones(len(observation.episodes), 1)
        return ActionChunk(observation.action[:, None], sure.bool(), sure, 1.0, {})

    def training_step(self, batch, batch_idx):
        self.noise = torch.rand(())
        return (self.weight - 1) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


def fit(module, tmp_path, *callbacks, **trainer):
    torch.manual_seed(0)
    logger = CSVLogger(tmp_path)
    run = Trainer(logger=logger, callbacks=list(callbacks), log_every_n_steps=3, **trainer, **QUIET)
    run.fit(module, torch.utils.data.DataLoader(torch.zeros(4, 1)))
    return run


def test_rollouts_during_fit_are_logged_and_leave_training_as_it_was(tmp_path):
    rules = EvaluationProtocol(max_seconds=0.2, trials_per_task=3, tasks=("reach_target",))
    callback = RolloutCallback(Benchmark(SIMULATOR, rules, parallel=4), every_n_steps=2, trials=2)
    module = Learner(CLIP)
    run = fit(module, tmp_path, callback, max_steps=4)
    # Every second step, in evaluation mode, without gradients; afterwards training mode again.
    assert [call[:2] for call in module.seen] == [(False, False)] * 2
    assert not any(call[3] for call in module.seen)
    assert [call[2] for call in module.seen] == pytest.approx([0.75, 0.9375])
    assert module.training
    assert module.drop.training
    assert not module.frozen.training
    assert run.callback_metrics["rollout/reach_target/success"] == 0
    rows = (Path(run.logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "rollout/reach_target/success" in rows[0]
    assert len(rows) == 3
    after = module.noise.clone()
    alone = Learner(CLIP)
    fit(alone, tmp_path, max_steps=4)
    assert alone.noise == after


def test_rollouts_use_the_averaged_weights_and_give_them_back(tmp_path):
    rules = EvaluationProtocol(max_seconds=0.1, trials_per_task=1, tasks=("reach_target",))
    callback = RolloutCallback(Benchmark(SIMULATOR, rules), every_n_epochs=1)
    module = Learner(CLIP)
    fit(module, tmp_path, AveragedWeights(decay=0.5), callback, max_epochs=2)
    weights, average = [1 - 0.5**step for step in range(1, 9)], 0.0
    averages = []
    for updates, weight in enumerate(weights):
        kept = (1 + updates) / (10 + updates) if updates else 0.0  # below the decay in every step
        average = kept * average + (1 - kept) * weight
        averages.append(average)
    assert [call[2] for call in module.seen] == pytest.approx([averages[3], averages[7]])


@pytest.mark.parametrize("arguments", [{}, {"every_n_steps": 1, "every_n_epochs": 1}, {"every_n_steps": 0}])
def test_rollouts_need_one_interval(arguments):
    with pytest.raises(ValueError, match="exactly one of every_n_steps"):
        RolloutCallback(Benchmark(SIMULATOR, PROTOCOL), **arguments)


def test_rollouts_refuse_a_module_that_cannot_act(tmp_path):
    callback = RolloutCallback(Benchmark(SIMULATOR, PROTOCOL), every_n_steps=1)

    module = LightningModule()
    module.clip = CLIP
    with pytest.raises(TypeError, match="LightningModule is no policy"):
        callback._roll_out(Trainer(logger=False, **QUIET), module)


TWO_RANKS = """
import sys
from lightning.pytorch import Trainer
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.policies import HoldStill
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.simulators.tabletop.simulator import Tabletop
from benchmarks.trial_datamodule import TrialDataModule
from tasks.fixed_policy import FixedPolicy
from ai_wam.types import Clip

rules = EvaluationProtocol(max_seconds=0.1, trials_per_task=5, tasks=("reach_target",))
benchmark, clip = Benchmark(Tabletop(image_size=(32, 32)), rules, parallel=2), Clip(size=(32, 32))
data = TrialDataModule(benchmark, clip, out=sys.argv[1], references=False, videos=1)
trainer = Trainer(logger=False, accelerator="cpu", devices=2, strategy="ddp_fork", enable_progress_bar=False)
trainer.test(FixedPolicy(HoldStill(), clip), datamodule=data, verbose=False)
"""


@pytest.mark.parametrize(("rank", "expected"), [("0", [0, 2, 4]), ("1", [1, 3])])
def test_ranks_share_the_trials_without_padding(monkeypatch, rank, expected):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which the Trainer changes for good
    trainer = Trainer(logger=False, devices=2, strategy="ddp", **QUIET)
    rules = EvaluationProtocol(trials_per_task=5, tasks=("reach_target",))
    data = TrialDataModule(Benchmark(SIMULATOR, rules, parallel=2), CLIP)
    data.trainer = trainer
    loader = data.test_dataloader()
    assert trainer._data_connector._prepare_dataloader(loader, False, RunningStage.TESTING) is loader
    trials = rules.trials(SIMULATOR)
    assert [trial for batch in loader for trial in batch.trials] == [trials[index] for index in expected]


@pytest.mark.slow
def test_five_trials_on_two_ranks_are_five(tmp_path):
    # A process of its own: ranks are forked, which a process that has drawn pictures does not survive.
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", TWO_RANKS, str(tmp_path)],
        check=True,
        cwd=root,
        timeout=100,
        capture_output=True,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    rules = EvaluationProtocol(trials_per_task=5, tasks=("reach_target",))
    assert [trial["id"] for trial in results["trials"]] == [trial.id for trial in rules.trials(SIMULATOR)]
    assert results["tasks"]["reach_target"]["policy"]["trials"] == 5
    assert (tmp_path / "report.html").read_text().count("<video") == 1
