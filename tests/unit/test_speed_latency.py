"""The table of latencies: the same trials by row, and seams that the committed actions close."""

import pytest

from benchmarks.speed import latency


def test_the_table_has_a_row_with_and_without_chunking(capsys: pytest.CaptureFixture[str]):
    latency.report(trials=2, latencies=[100])
    head, _, switching, chunking = capsys.readouterr().out.splitlines()
    assert head == "reach_target, 2 trials of 4 s, 4 actions of a chunk carried out"
    assert switching.split()[:4] == ["100", "ms", "switching", "2/2"]
    assert chunking.split()[:4] == ["100", "ms", "chunking", "2/2"]
    largest = [float(row.split()[-1]) for row in (switching, chunking)]
    assert largest[1] < 10 < largest[0]
