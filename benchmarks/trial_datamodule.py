"""Trials as test data: `Trainer.test` runs a benchmark like any other test set.

    ai-wam test --ckpt_path x.ckpt --data configs/benchmark/tabletop.yaml

A task needs one line for it: `test_step` calls `batch.run(self)`. Results are gathered by trial id when the
test epoch ends, so no step waits for another rank and no trial is padded, repeated or lost.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import atomic_file, inside, write_json, write_text
from ai_wam.files.json_yaml import read_json
from ai_wam.types import Clip, MultiDecoderPolicy, Policy
from ai_wam.utils.class_paths import class_path
from ai_wam.utils.run_folders import own_folder
from benchmarks.evaluation.benchmark import Benchmark, TrialResult
from benchmarks.evaluation.journal import Journal, Results
from benchmarks.evaluation.provenance import content_hash, versions
from benchmarks.evaluation.results import assemble, check_complete
from benchmarks.evaluation.trial_recording import FOLDER
from benchmarks.evaluation.trial_video import SEEN, TrialVideo
from benchmarks.report.html_report import render
from benchmarks.report.text_tables import results_table
from benchmarks.simulator import Trial


class TrialBatch:
    """Trials that are run together. Not a dataclass, which Lightning would copy field by field.

    Args:
        benchmark: runs them.
        trials: the trials.
        clip: the policy's views, size and stride.
        videos: ids of the trials that get a video.
        references: run ceiling and floors too.
        results: receives the results, by arm and trial id.
        explain: find out why failed trials failed.
        on_results: called with the results of every run.
        decoders: run the policy by each of its other decoders too.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        trials: list[Trial],
        clip: Clip,
        videos: frozenset[str],
        references: bool,
        results: Results,
        explain: bool = True,
        on_results: Callable[[Results], None] | None = None,
        decoders: bool = True,
    ) -> None:
        self.explain, self.on_results, self.decoders = explain, on_results, decoders
        self.benchmark, self.trials, self.clip = benchmark, trials, clip
        self.videos, self.references, self.results = videos, references, results
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.trials)

    def to(self, device: torch.device | str, **_: Any) -> "TrialBatch":
        """Set the device of the policy's observations; the simulators are not moved."""
        self.device = torch.device(device)
        return self

    def run(self, policy: Policy) -> list[TrialResult]:
        """Run every trial that has no result yet in all arms.

        Returns:
            The policy's results, one per trial; those of all arms are in `results`.
        """
        known = self.results.get("policy", {})
        if left := [trial for trial in self.trials if trial.id not in known]:
            made = {
                arm: {result.trial.id: result for result in results}
                for arm, results in self._arms(policy, left).items()
            }
            for arm, results in made.items():
                self.results.setdefault(arm, {}).update(results)
            if self.on_results is not None:
                self.on_results(made)
        return [self.results["policy"][trial.id] for trial in self.trials]

    def _arms(self, policy: Policy, trials: list[Trial]) -> dict[str, list[TrialResult]]:
        own = self.benchmark.run(policy, trials, self.clip, self.videos, self.device)
        codec = getattr(policy, "tokenizer", None)  # failures and ceiling are evaluated by the policy's codec
        if self.explain:
            own = self.benchmark.explain(own, codec)
        references = {}
        if self.references:
            references["ceiling"] = self.benchmark.ceiling(trials, self.clip, codec)
            references["floor"] = self.benchmark.floor(trials, self.clip)
            if self.benchmark.blind_demonstrations:
                references["blind"] = self.benchmark.blind_floor(trials, self.clip)
        arms = {"policy": own, **self._other_decoders(policy, trials), **references}
        return {
            arm: [replace(result, generated_chunks=()) for result in results] for arm, results in arms.items()
        }

    def _other_decoders(self, policy: Policy, trials: list[Trial]) -> dict[str, list[TrialResult]]:
        """Results of the trials by each of the policy's other decoders, by the decoder's name."""
        if not self.decoders or not isinstance(policy, MultiDecoderPolicy):
            return {}
        limited = self.benchmark.protocol.max_position_std is not None
        others = policy.by_decoder(knows_std=limited)
        if taken := others.keys() & {"policy", "ceiling", "floor", "blind"}:
            raise InvalidValue(f"{type(policy).__name__}.by_decoder: {sorted(taken)} are arms of every test")
        return {
            name: self.benchmark.run(other, trials, self.clip, device=self.device)
            for name, other in others.items()
        }


class TrialLoader:
    """One rank's batches in order. Not a `DataLoader`: Lightning would split it over ranks, with padding."""

    def __init__(self, batches: list[TrialBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TrialBatch]:
        return iter(self.batches)


class TrialDataModule(LightningDataModule):
    """Test data whose items are trials; writes results.json and report.html when they have run.

    Every rank runs every n-th trial with a whole model of its own. Finished trials are kept in a journal in
    the results' folder, from which the same test resumes if it was interrupted.

    Args:
        benchmark: simulator and protocol.
        clip: the model's; the command line links it.
        out: folder of results.json and report.html; the trainer's log folder if None.
        videos: number of trials of every task, from its first on, whose videos are in the report.
        references: run ceiling and floors too.
        trials_per_step: trials of one test step; as many as worlds run in parallel if None.
        trials: ids of the protocol's trials to run; all of them if left out.
        share: (k, n) if this is run k of n that share the trials: it runs every n-th trial from the k-th on,
            or none, and writes nothing, where there are fewer trials.
        explain: replay failed trials to find out why they failed; see
            `benchmarks.evaluation.failure_analysis`.
        decoders: where a policy has other decoders than the one by which it acts (a learned action head, the
            geometric decoder), run the trials by each; the arm is named after the decoder.

    Raises:
        ValueError: an id that is none of the protocol's, or a share out of range.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        clip: Clip | None = None,
        out: str | Path | None = None,
        videos: int = 12,
        references: bool = True,
        trials_per_step: int | None = None,
        trials: Sequence[str] | None = None,
        share: tuple[int, int] = (0, 1),
        explain: bool = True,
        decoders: bool = True,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer trials than ranks is no error
        self.benchmark = benchmark
        self.clip = clip or Clip()
        self.out = None if out is None else Path(out)
        self.videos = videos
        self.references = references
        self.trials_per_step = trials_per_step or benchmark.parallel
        self.trials = _chosen(benchmark.trials(), trials)
        self._shared = self.trials[share[0] :: share[1]]
        if not 0 <= share[0] < share[1]:
            raise InvalidValue(f"TrialDataModule: share is {share}; it is (k, n) with 0 <= k < n")
        self.arms: Results = {}
        self.explain, self.decoders = explain, decoders
        self.results: dict[str, Any] = {}
        self._own: Results = {}
        self._policy: dict[str, Any] = {}
        self._journal: Journal | None = None
        self._collector = _Collector(self)

    def setup(self, stage: str) -> None:
        """Register the callback that begins and finishes the test."""
        if stage != "test":
            raise InvalidValue(
                "TrialDataModule has trials to test, no data to fit or validate on: run Trainer.test"
            )
        callbacks: list[Callback] = self._trainer().callbacks  # type: ignore[attr-defined]
        if self._collector not in callbacks:
            callbacks.append(self._collector)
        self._own.clear()

    def teardown(self, stage: str) -> None:
        """Release the simulators."""
        callbacks: list[Callback] = self._trainer().callbacks  # type: ignore[attr-defined]
        callbacks.remove(self._collector)
        self.benchmark.close()

    def test_dataloader(self) -> TrialLoader:
        """This rank's trials: every n-th on n ranks."""
        trainer = self._trainer()
        own = self._shared[trainer.global_rank :: trainer.world_size]
        step, videos = self.trials_per_step, self._with_video()
        batches = [
            TrialBatch(
                self.benchmark,
                own[i : i + step],
                self.clip,
                videos,
                self.references,
                self._own,
                self.explain,
                self._append_to_journal,
                self.decoders,
            )
            for i in range(0, len(own), step)
        ]
        return TrialLoader(batches)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Take over this rank's trials that an interrupted run of the test has finished.

        Raises:
            ValueError: the folder holds the trials or the results of another test.
        """
        self._policy = _policy_entry(trainer, module) | {"frames": self.clip.frames}
        identity = {
            "protocol": self.benchmark.protocol.describe(self.benchmark.simulator, self.clip),
            "policy": {name: value for name, value in self._policy.items() if name != "checkpoint"},
            "versions": versions(),
            **{name: getattr(self, name) for name in ("videos", "references", "explain", "decoders")},
            "blind_demonstrations": self.benchmark.blind_demonstrations,
        }
        folder = self.out or own_folder(trainer)  # asks all ranks
        _check_same_policy(folder / "results.json", self._policy)
        self._journal = journal = Journal(folder, trainer.global_rank, identity)
        own = {trial.id for trial in self._shared[trainer.global_rank :: trainer.world_size]}
        for arm, results in journal.finished.items():
            self._own[arm] = {name: result for name, result in results.items() if name in own}
        if done := len(self._own.get("policy", {})):
            rank_zero_info(f"resuming: {done} of {len(own)} trials are finished")

    def _append_to_journal(self, results: Results) -> None:
        assert self._journal is not None
        self._journal.add(results, self.benchmark.versions())

    def finish(self, trainer: Trainer, module: LightningModule) -> None:
        """Gather every rank's results, log the rates, write the files.

        Raises:
            RuntimeError: the ranks together did not run every trial exactly once.
        """
        self.arms = _gather(self._own, self._shared)
        journal = self._journal
        assert journal is not None
        protocol, simulator = self.benchmark.protocol, self.benchmark.simulator
        self.results = assemble(
            self._shared,
            self.arms,
            protocol.describe(simulator, self.clip),
            protocol.hash(simulator, self.clip),
            self._policy,
            self.benchmark.versions() or journal.world,
            self.benchmark.drawn(self._shared),
        )
        for name, value in _scalars(self.results).items():
            module.log(name, value, sync_dist=trainer.world_size > 1)
        if trainer.is_global_zero:
            write_results(journal.path.parent, self.results, self.arms["policy"])
        trainer.strategy.barrier()  # the journal stays until the results are written
        journal.remove(everything=trainer.is_global_zero)

    def _with_video(self) -> frozenset[str]:
        """Ids of every task's first trials: chosen before they run, so that the report shows no selection."""
        tasks = dict.fromkeys(trial.task for trial in self.trials)
        return frozenset(
            trial.id for task in tasks for trial in [t for t in self.trials if t.task == task][: self.videos]
        )

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError(
                "TrialDataModule runs inside Trainer.test(model, datamodule=...); without a trainer use "
                "Benchmark.run"
            )
        return self.trainer


class _Collector(Callback):
    """Calls the datamodule when trials begin and have all run, for which datamodules have no hooks."""

    def __init__(self, datamodule: TrialDataModule) -> None:
        self.datamodule = datamodule

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.datamodule.begin(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.datamodule.finish(trainer, pl_module)


def write_results(folder: Path, results: Mapping[str, Any], runs: Mapping[str, TrialResult]) -> None:
    """Write results.json, report.html and the recordings of trials with a video, and print the table.

    Args:
        folder: where; made if missing.
        results: content of results.json.
        runs: the policy's results, whose videos are shown.
    """
    videos = {name: run.video for name, run in runs.items() if run.video is not None}
    write_json(folder / "results.json", results)
    write_text(folder / "report.html", render(results, videos))
    if first := next((video.first for video in videos.values()), b""):
        with atomic_file(folder / SEEN) as stream:
            stream.write(first)
    _write_recordings(folder / FOLDER, videos)
    places = f"results: {folder / 'results.json'}\nreport: {folder / 'report.html'}"
    rank_zero_info(f"{results_table(results)}\n{places}")


def _write_recordings(folder: Path, videos: Mapping[str, TrialVideo]) -> None:
    """Write the recordings of the trials with a video, instead of those of an earlier test."""
    for old in folder.glob("*.npz"):
        old.unlink()
    for name, video in videos.items():
        if video.recording:
            with atomic_file(inside(folder, f"{name}.npz")) as stream:
                stream.write(video.recording)


def _chosen(trials: list[Trial], ids: Sequence[str] | None) -> list[Trial]:
    """The named trials, in the protocol's order."""
    known = {trial.id: trial for trial in trials}
    if ids is None:
        return trials
    if foreign := [name for name in ids if name not in known]:
        raise InvalidValue(
            f"TrialDataModule: trials {foreign[:3]} ({len(foreign)} of {len(ids)}) are not the protocol's, "
            f"which are {trials[0].id} to {trials[-1].id} ({len(trials)}); take ids from a results.json of it"
        )
    if not ids:
        raise InvalidValue("TrialDataModule: trials is empty; name some, or leave it out to run all of them")
    return [trial for name, trial in known.items() if name in ids]


def _policy_entry(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The entry "policy" of results.json."""
    checkpoint = trainer.ckpt_path
    return {
        "name": class_path(module),
        "config": json.loads(json.dumps(dict(module.hparams), default=class_path)),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "checkpoint_hash": None if checkpoint is None else content_hash(checkpoint),
    }


def _check_same_policy(path: Path, policy: Mapping[str, Any]) -> None:
    """Refuse to write over the results of another policy; a test of the same one may be run again.

    Raises:
        ValueError: results of another checkpoint or, without one, of other settings.
    """
    if not path.exists():
        return
    before = read_json(path).get("policy", {})
    kept = ("name", "checkpoint", "config") if policy["checkpoint"] is None else ("name", "checkpoint")
    if any(before.get(name) != policy[name] for name in kept):
        there, here = (
            each.get("checkpoint") or f"{each.get('name')} of its own settings" for each in (before, policy)
        )
        raise InvalidValue(
            f"{path} holds the results of another policy: {there} there, {here} here; give another folder "
            "(--data.out), or remove it"
        )


def _gather(own: Results, trials: list[Trial]) -> Results:
    """Results of all ranks by arm and trial id."""
    parts = [own]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, own)
    merged: Results = {}
    for arm in dict.fromkeys(["policy", *(arm for part in parts for arm in part)]):
        results = [result for part in parts if arm in part for result in part[arm].values()]
        check_complete(arm, trials, [result.trial.id for result in results])
        merged[arm] = {result.trial.id: result for result in results}
    return merged


def _scalars(results: Mapping[str, Any]) -> dict[str, float]:
    """Metrics for loggers: success rates by task and arm, their means, and the policy's diagnostics."""
    scalars = {f"test/success/{arm}": rate for arm, rate in results["mean"].items() if rate is not None}
    for task, summary in results["tasks"].items():
        for arm in results["mean"]:
            if summary[arm]["rate"] is not None:
                scalars[f"test/{task}/{arm}"] = summary[arm]["rate"]
        for name, value in summary["diagnostics"].items():
            if value is not None:
                scalars[f"test/{task}/{name}"] = value
    return scalars
