"""An error comes out of a worker as it was raised there."""

import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from av.error import InvalidDataError

from ai_wam.cli.errors import sentence
from ai_wam.cli.signals import Terminated
from ai_wam.errors import CannotContinue, InvalidValue, LostEpisode, UserError
from ai_wam.files.json_yaml import read_json
from ai_wam.video import VideoEncoding
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import SourceShards, write_shards
from datamodules.shards.format import ShardError
from datamodules.shards.worker_errors import Failure, WorkerTraceback


class TwoWords(UserError, ValueError):
    """Takes more than a message, so it cannot be unpickled."""

    def __init__(self, name: str, value: int) -> None:
        super().__init__(f"{name} is {value}")


def sent(error: Exception) -> BaseException:
    try:
        raise error
    except Exception as caught:
        return pickle.loads(pickle.dumps(Failure.of(caught))).error()


def test_class_message_and_cause_arrive():
    outer = RuntimeError("Problem with given class_path")
    outer.__cause__ = InvalidValue("clip.frames is 1")
    found = sent(outer)
    assert type(found) is RuntimeError
    assert str(found) == str(outer)
    assert type(found.__cause__) is InvalidValue
    assert sentence(found) == "clip.frames is 1"
    assert isinstance(found.__cause__.__cause__, WorkerTraceback)
    assert "test_worker_errors.py" in str(found.__cause__.__cause__)


def test_the_operating_systems_number_and_file_arrive():
    found = sent(FileNotFoundError(2, "No such file or directory", "a.mp4"))
    assert isinstance(found, FileNotFoundError)
    assert (found.errno, found.filename) == (2, "a.mp4")


def test_what_cannot_be_unpickled_keeps_its_message():
    assert sentence(sent(TwoWords("frames", 1))) == "frames is 1"
    assert str(sent(zlib.error("invalid block type"))) == "invalid block type"


class Faulty(MovingSquares):
    """Squares whose second episode raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(2, 4, (16, 24), views=("front",))
        object.__setattr__(self, "error", error)

    def __getitem__(self, index: int):  # an Episode
        if index == 1:
            raise self.error
        return super().__getitem__(index)


FAULTS = [
    zlib.error("Error -3"),
    KeyError("K"),
    EOFError("no more"),
    OverflowError("too large"),
    pickle.UnpicklingError("pickle data was truncated"),
    InvalidDataError(1, "Invalid data found", "a.mp4"),
    RecursionError("maximum recursion depth exceeded"),
    OSError(5, "Input/output error", "a.mp4"),
    LostEpisode("the expert failed"),
    ShardError("a.tar is damaged"),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_every_fault_of_data_is_left_out_or_one_sentence(tmp_path: Path, error: Exception):
    index = write_shards(Faulty(error), tmp_path / "out", 2, workers=0, progress=False, on_error="skip")
    (left,) = index["left_out"]
    assert left["index"] == 1
    assert left["reason"]
    with pytest.raises(Exception, match=r".") as raised:
        write_shards(Faulty(error), tmp_path / "raised", 2, workers=0, progress=False)
    said = sentence(raised.value)
    assert said
    assert "\n" not in said


@pytest.mark.parametrize(
    "error",
    [CannotContinue("RLBench is missing"), OSError(28, "No space left"), MemoryError(), TypeError("x")],
)
def test_faults_of_the_machine_and_of_programs_are_not_left_out(error: Exception):
    shards = SourceShards(Faulty(error), 2, VideoEncoding(), on_error="skip")
    with pytest.raises(type(error)):
        shards._episode(1)


def test_errors_in_a_ring_end():
    """`raise error from error`, and two that name each other."""
    one, two = KeyError("a"), ValueError("b")
    one.__cause__, two.__cause__ = two, one
    alone = InvalidValue("c")
    alone.__cause__ = alone
    assert len(Failure.of(one).chain) == 2
    assert sentence(one) is None
    assert sentence(sent(alone)) == "c"


@pytest.mark.parametrize("status", [0, 3, "bye"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_source_that_ends_the_program_is_an_error(tmp_path: Path, status: object, on_error: Any):
    """With status 0 a folder that is not complete would look like a success."""
    exits = Faulty(SystemExit(status))
    with pytest.raises(CannotContinue, match=r"episode 1 of Faulty ended the program \(sys.exit\("):
        write_shards(exits, tmp_path, 2, workers=0, progress=False, on_error=on_error)


def test_an_interruption_is_no_end_of_a_source(tmp_path: Path):
    with pytest.raises(Terminated):
        write_shards(Faulty(Terminated()), tmp_path, 2, workers=0, progress=False)


@pytest.mark.parametrize("text", ["caf\udce9", "x" * 10**6])
def test_reasons_can_be_written_and_read(tmp_path: Path, text: str):
    """Names of files are bytes, and errors quote what they refuse."""
    faulty = Faulty(ValueError(text))
    index = write_shards(faulty, tmp_path, 2, workers=0, progress=False, on_error="skip")
    assert read_json(tmp_path / "index.json")["left_out"] == index["left_out"]
    assert len((tmp_path / "index.json").read_text()) < 10_000
