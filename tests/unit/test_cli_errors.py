"""One sentence for what was refused on purpose, the traceback for everything else."""

import pytest

from ai_wam.cli import main
from ai_wam.cli.errors import SWITCH, one_sentence
from ai_wam.types import Clip
from datamodules.shard_format import ShardError
from datamodules.shard_reader import ShardSet


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


@pytest.mark.parametrize("wrong", [lambda: int("x"), lambda: (1).missing, lambda: [].index(1)])
def test_what_nobody_expected_keeps_its_traceback(wrong):
    with pytest.raises((ValueError, AttributeError)), one_sentence("fit"):
        wrong()
