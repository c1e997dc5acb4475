"""The latency table runs at a tiny size and names what it measured."""

import pytest

from benchmarks.speed import sample


def test_every_plan_and_decoder_is_measured(capsys: pytest.CaptureFixture[str]):
    sample.main(backbone="wan-tiny", size=32, frames=9, steps=1, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wan-tiny, 32 px, 9 frames")
    assert [line.split()[0] for line in lines[2:4]] == ["joint", "policy"]
    assert all(float(cell) > 0 for line in lines[2:4] for cell in line.split()[1:])
    assert lines[1].split() == ["whole", "geometric", "beginning", "latent", "head"]
