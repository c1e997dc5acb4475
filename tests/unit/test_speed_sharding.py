"""The benchmark of sharded reading runs at a tiny size and tells both ways of every process."""

import pytest

from benchmarks.speed import sharding


@pytest.mark.slow  # two processes that import everything, one after the other
def test_both_ways_are_measured(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sharding.WIDTH, "ffn_dim", 64)
    sharding.main(layers=1, processes=1)
    lines = capfd.readouterr().out.splitlines()
    assert "1 processes" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "all read, then sharded",
        "sharded, then read",
    ]
