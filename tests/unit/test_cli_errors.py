"""One sentence for what was refused on purpose, the traceback for everything else."""

import gc
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from upath import UPath
from yaml import YAMLError

from ai_wam.cli import main
from ai_wam.cli.checkpoint_settings import hyperparameters
from ai_wam.cli.errors import SWITCH, one_sentence
from ai_wam.cli.renamed_settings import MODULES
from ai_wam.cli.resuming import named_file
from ai_wam.cli.signals import Terminated
from ai_wam.types import Clip
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.reader import ShardSet


def test_a_refusal_is_one_sentence():
    with pytest.raises(SystemExit, match=r"^ai-wam inspect: nowhere is not a folder; [^\n]*$"):
        main(["inspect", "nowhere"])


def test_what_wraps_a_refusal_is_left_out():
    def refused() -> None:
        try:
            Clip(frames=1)
        except ValueError as error:
            raise RuntimeError("Problem with given class_path; a dump of a hundred lines") from error

    with pytest.raises(SystemExit, match=r"^ai-wam fit: Clip.*frames must be >= 2"), one_sentence("fit"):
        refused()


def test_a_switch_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(ShardError, match="nowhere"), one_sentence("inspect"):
        ShardSet("nowhere")


class Unreadable(Dataset):
    """A data set whose only sample raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ShardError("shard 3 is damaged\nin two lines"), "shard 3 is damaged\nin two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.tar"), "No such file or directory: 'a.tar'"),
    ],
)
def test_errors_of_data_workers_are_the_same_sentence(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
):
    # PyTorch waits so long for a worker to end, 5 s by itself, before it ends it.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(SystemExit) as stop, one_sentence("fit"):
        next(iter(DataLoader(Unreadable(error), num_workers=1)))
    assert str(stop.value) == f"ai-wam fit: {said}"
    del stop
    gc.collect()  # the worker ends here


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device; make room and run the same"),
        (
            PermissionError(13, "Permission denied", "/x"),
            "Permission denied: '/x'; name a place where",
        ),
        (NotADirectoryError(20, "Not a directory", "/x/y"), "a file stands where a folder is expected"),
        (MemoryError("Unable to allocate 9 TiB"), r"out of memory \(Unable to allocate 9 TiB\)"),
        (RuntimeError("[x] . DefaultCPUAllocator: can't allocate memory: 9"), "out of memory"),
        (RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"), "use fewer data workers"),
        (SafetensorError("header too large"), "header too large"),
        (YAMLError("while parsing\n  a block"), "while parsing a block"),
        (MisconfigurationException("no such device"), "no such device"),
    ],
)
def test_what_the_machine_and_libraries_refuse(error: Exception, said: str):
    with pytest.raises(SystemExit, match=f"^ai-wam fit: .*{said}") as stop, one_sentence("fit"):
        raise error
    assert stop.value.code == 1


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_an_interruption_says_what_is_kept(error: BaseException, status: int):
    with pytest.raises(SystemExit) as stop, one_sentence("fit", "all is kept"):
        raise error
    assert stop.value.code == status
    assert str(stop.value) == "ai-wam fit: interrupted; all is kept"


@pytest.mark.parametrize("wrong", [lambda: int("x"), lambda: (1).missing, lambda: [].index(1)])
def test_what_nobody_expected_keeps_its_traceback(wrong):
    with pytest.raises((ValueError, AttributeError)), one_sentence("fit"):
        wrong()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"decode_observation": False}, "decoder was called decode_observation"),
        ({"sampling_steps": 4}, r"sampling\.steps was called sampling_steps"),
        (
            {"backbone": {"class_path": "x.Y", "init_args": {"path": {"class_path": "ai_wam.noise.EDM"}}}},
            r"ai_wam\.diffusion\.noise_paths\.EDM was called ai_wam\.noise\.EDM",
        ),
    ],
)
def test_checkpoints_with_names_of_before_are_refused(tmp_path: Path, saved: dict, message: str):
    torch.save(
        {"hyper_parameters": {"_class_path": "tasks.policy.PolicyControl", **saved}}, tmp_path / "old.ckpt"
    )
    with pytest.raises(ValueError, match=rf"before 0\.1\.0, in which {message}; .* train again"):
        hyperparameters(str(tmp_path / "old.ckpt"))


PROTOCOL = """
class_path: benchmarks.trial_datamodule.TrialDataModule
init_args:
  benchmark:
    class_path: benchmarks.evaluation.benchmark.Benchmark
    init_args:
      simulator: {class_path: benchmarks.simulators.tabletop.simulator.Tabletop}
      protocol: {vague: hold}
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.benchmark.protocol.vague", "hold"], "`vague` is now `low_confidence`"),
        (["--data", "old.yaml"], "`vague` is now `low_confidence`"),
        (["--data.record=3"], "`record` is now `videos`"),
    ],
)
def test_a_renamed_setting_is_refused_with_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    (tmp_path / "old.yaml").write_text(PROTOCOL)
    monkeypatch.chdir(tmp_path)
    policy = ["--model=tasks.fixed_policy.FixedPolicy", "--model.policy=benchmarks.policies.HoldStill"]
    with pytest.raises(SystemExit, match=rf"^ai-wam test: .* is not accepted\. {message} "):
        main(["test", *policy, "--data=configs/benchmark/reach_target.yaml", *words])


def is_module(name: str) -> bool:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # nor is its package there
        return False
    return spec is not None and spec.submodule_search_locations is None


def test_renamed_modules_are_in_their_new_place_alone():
    assert all(map(is_module, MODULES.values()))
    assert not any(map(is_module, MODULES))


def test_an_export_that_a_store_does_not_take_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_shards(MovingSquares(1, 5), tmp_path / "shards", 1, workers=0, progress=False)
    place = UPath("memory://export-that-fails")
    put, sent = type(place.fs).put_file, []

    def full(self: object, source: str, target: str, *more: object, **options: object) -> None:
        if sent:
            raise OSError(28, "No space left on device")
        sent.append(target)
        put(self, source, target, *more, **options)

    monkeypatch.setattr(type(place.fs), "put_file", full)
    words = ["--shards", str(tmp_path / "shards"), "--out", str(place), "--to", "action_images"]
    with pytest.raises(SystemExit, match="No space left"):
        main(["export", *words])
    assert sent
    assert not place.exists()


def test_last_is_the_newest_file_where_the_logger_saves(tmp_path: Path):
    arguments = Namespace(save_dir=str(tmp_path), name="run", version=3)
    logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=arguments)
    asked = Namespace(ckpt_path="last", trainer=Namespace(logger=logger, callbacks=[]))
    folder = tmp_path / "run" / "version_3" / "checkpoints"
    with pytest.raises(ValueError, match=re.escape(f"there is no last*.ckpt in {folder}")):
        named_file(asked)
    folder.mkdir(parents=True)
    for number, name in enumerate(("last.ckpt", "last-v1.ckpt", "best.ckpt")):
        (folder / name).write_text("x")
        os.utime(folder / name, (number, number))
    assert named_file(asked) == str(folder / "last-v1.ckpt")
    arguments.version = None  # each run begins a new one
    later = folder.parent.with_name("version_10") / "checkpoints"
    later.mkdir(parents=True)
    (later / "last.ckpt").write_text("x")
    assert named_file(asked) == str(later / "last.ckpt")


def test_a_sentence_is_no_megabyte():
    with pytest.raises(SystemExit) as stop, one_sentence("fit"):
        raise ShardError("a" + "x" * 10**6 + "z")
    said = str(stop.value)
    assert len(said) < 11_000
    assert said.startswith("ai-wam fit: axx")
    assert said.endswith("xxz")
