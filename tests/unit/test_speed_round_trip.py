"""The table of what action images keep of recorded poses."""

from pathlib import Path

import pytest

from benchmarks.speed import round_trip
from datamodules.shards.convert_source import write_shards
from tests.unit.test_inspection import InView


def printed(
    source: InView, folder: Path, capsys: pytest.CaptureFixture, **options: str
) -> dict[str, list[str]]:
    """Cells of the table by the first word of their line."""
    write_shards(source, folder / "data", 2, workers=0, progress=False)
    round_trip.report(str(folder / "data"), size=64, **options)
    lines = capsys.readouterr().out.replace(" %", "%").splitlines()[2:]
    return {line.split("  ")[0]: line[len(line.split("  ")[0]) :].split() for line in lines}


def test_poses_in_two_pictures_come_back(tmp_path, capsys):
    source = InView(2, 9)
    rows = printed(source, tmp_path, capsys, backbone="wan-tiny")
    assert list(rows) == [source[0].instructions[0], "all"]
    steps, unseen, one_view, _, p95, degrees, read, _, coded_p95, _, _ = rows["all"]
    frames = sum(len(list(source[index].frames)) for index in range(len(source)))
    assert (int(steps), unseen, one_view, read) == (frames, "0.0%", "0.0%", "100.0%")
    assert float(p95) < 0.5
    assert float(degrees) < 0.5
    assert float(p95) < float(coded_p95)


def test_poses_beside_all_pictures_are_counted(tmp_path, capsys):
    _, unseen, one_view, *_, read = printed(InView(1, 9, beside=20.0), tmp_path, capsys)["all"]
    assert (unseen, one_view, read) == ("100.0%", "0.0%", "0.0%")
