"""`ai-wam sweep`: one checkpoint tested under a list of shifts."""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ai_wam.cli.checkpoint_settings import check_there
from ai_wam.cli.parsing import WordParser
from ai_wam.cli.shipped_configs import own_or_shipped
from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import read_yaml
from benchmarks.evaluation.sweep import FILE, SweepPoint, SweepRecord, read_points
from benchmarks.report.sweep_page import sweep_table, write_page

_HELP = """\
The words of an `ai-wam test` without --data.out, such as --ckpt_path, --data and --ray, and:"""
_SHIFT = "--data.benchmark.init_args.protocol.shift"


def add_options(parser: ArgumentParser) -> None:
    """Add the command's own options, without the checkpoint, which is a test's."""
    parser.add_argument("--points", required=True, help="YAML file of the points: names and their shifts")
    parser.add_argument("--out", required=True, help="folder of sweep.json, sweep.html and all results")


def main(words: Sequence[str]) -> None:
    """Test a checkpoint at every point that is not finished; write sweep.json and sweep.html."""
    parser = WordParser(prog="ai-wam sweep", description=_HELP, allow_abbrev=False)
    add_options(parser)
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint")
    known, rest = parser.parse_known_args(list(words))
    if taken := [word for word in rest if word.partition("=")[0] in ("--data.out", _SHIFT)]:
        raise InvalidValue(f"ai-wam sweep: {taken[0]} is set by the sweep for every point; leave it out")
    check_there(known.ckpt_path)
    points = [_with_content(point) for point in read_points(own_or_shipped(known.points))]
    record = SweepRecord(Path(known.out), known.ckpt_path, rest, points)
    record.write()
    for number, point in enumerate(points, start=1):
        if point.name in record.finished:
            continue
        print(f"\nsweep: point {number} of {len(points)}, {point.name}", flush=True)
        _test(point, record, rest)
        record.finish(point)
        write_page(record.folder, record.content())
    write_page(record.folder, record.content())
    print(f"\n{sweep_table(record.content())}\nsweep: {record.folder / FILE}")


def _with_content(point: SweepPoint) -> SweepPoint:
    """The point with its shift as the file has it now: a file that changes makes another sweep."""
    if not isinstance(point.shift, str):
        return point
    return replace(point, shift=read_yaml(own_or_shipped(point.shift)))


def _test(point: SweepPoint, record: SweepRecord, words: Sequence[str]) -> None:
    """Run the point's test in this process, or on Ray; it resumes by itself."""
    from ai_wam.cli import run_command

    own = [f"--ckpt_path={record.checkpoint}", f"--data.out={record.place(point)}"]
    if point.shift is not None:
        own.append(f"{_SHIFT}={json.dumps(point.shift)}")
    run_command("test", [*words, *own])
