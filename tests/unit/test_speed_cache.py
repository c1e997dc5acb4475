"""The benchmark of caches, at a tiny size."""

import pytest

from benchmarks.speed import cache


def test_it_prints_ratios_with_their_bar(capsys: pytest.CaptureFixture[str]):
    cache.main(episodes=1, frames=24, size=32, every=12, samples=16, lengths=(9,))
    said = capsys.readouterr().out
    assert said.count("bar >= 50x") == 1
    assert said.count("ms to read back; computing them takes") == 1
    assert said.count("x as fast as by the released recipe") == 1
