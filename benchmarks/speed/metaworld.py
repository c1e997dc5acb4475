"""What poses can solve in Meta-World: `python -m benchmarks.speed.metaworld --out=metaworld.json`.

Prints for every task how many scenes its scripted expert solves; how many are solved by the poses that it
reached at every k-th control step, followed open loop (`poses`); by these poses drawn as action images and
read back (`codec`, the ceiling of every model that acts by action images); and by the mean of eight training
demonstrations, replayed without looking (`blind`). Finished tasks are kept in a file, from which the same
command resumes.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from tqdm import tqdm

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import write_json
from ai_wam.files.json_yaml import read_json
from ai_wam.types import Clip
from benchmarks.evaluation.benchmark import Benchmark
from benchmarks.evaluation.protocol import EvaluationProtocol
from benchmarks.policies import Expert
from benchmarks.report.text_tables import aligned
from benchmarks.simulator import Trial
from benchmarks.simulators.metaworld.simulator import MetaWorld

_SECONDS = 6.25  # the published 500 control steps
_WAYS = ("poses", "codec", "blind")
_UNREACHED = 80  # control steps, one second


def report(
    out: Path,
    tasks: Sequence[str] = (),
    scenes: int = 4,
    strides: Sequence[int] = (4, 8),
    size: int = 128,
    views: Sequence[str] = ("left_shoulder", "right_shoulder"),
) -> None:
    """Run the tasks that the file does not have yet, then print it as a table.

    Args:
        out: JSON file of the finished tasks.
        tasks: names of tasks; all fifty if empty.
        scenes: scenes of the split "test" of each task.
        strides: control steps from one pose to the next; several are compared.
        size: height and width in pixels of the action images.
        views: cameras of the framed rig.
    """
    simulator = MetaWorld("framed", (size, size), views)
    names = tuple(tasks) or tuple(simulator.tasks())
    settings = {
        "scenes": scenes,
        "strides": list(strides),
        "size": size,
        "views": list(views),
        "definition": simulator.definition([]),
    }
    rows = _kept(out, settings)
    for name in tqdm([name for name in names if name not in rows], unit="task", leave=False):
        rows[name] = _row(simulator, name, scenes, strides)
        write_json(out, {"settings": settings, "tasks": rows})
    simulator.close()
    print(table({name: rows[name] for name in names}, strides))


def table(rows: Mapping[str, Mapping[str, Any]], strides: Sequence[int]) -> str:
    """Solved scenes by task, and their sums."""
    columns = ["expert", *(f"{way}/{stride}" for way in _WAYS for stride in strides)]
    lines = [["task", "scenes", "steps", *columns]]
    for name, row in rows.items():
        lines.append([name, *(str(row[column]) for column in lines[0][1:])])
    sums = [str(sum(row[column] for row in rows.values())) for column in ("scenes", *columns)]
    lines.append(["all", sums[0], "", *sums[1:]])
    return "\n".join(aligned(lines))


def _kept(out: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if not out.exists():
        return {}
    content = read_json(out)
    if content.get("settings") != settings:
        raise InvalidValue(
            f"{out} has tasks of other settings, {content.get('settings')}, where now there are "
            f"{dict(settings)}; give another file as --out or the same settings"
        )
    return dict(content["tasks"])


def _row(simulator: MetaWorld, task: str, scenes: int, strides: Sequence[int]) -> dict[str, Any]:
    trials = [Trial(task, 0, index) for index in range(scenes)]
    solved, steps = zip(*(_demonstrated(simulator, trial) for trial in trials), strict=True)
    row: dict[str, Any] = {"scenes": scenes, "steps": round(sum(steps) / scenes), "expert": sum(solved)}
    for way, stride in itertools.product(_WAYS, strides):
        row[f"{way}/{stride}"] = _replayed(simulator, trials, stride, way)
    return row


def _demonstrated(simulator: MetaWorld, trial: Trial) -> tuple[bool, int]:
    """Whether the expert solves a trial, and in how many control steps it ends."""
    simulator.reset(trial)
    results = [simulator.step(action) for action in simulator.demonstrate()]
    return results[-1].success, len(results)


def _replayed(simulator: MetaWorld, trials: Sequence[Trial], stride: int, way: str) -> int:
    """How many trials recorded poses solve, one after the other without looking."""
    protocol = EvaluationProtocol(
        execution="one_shot",
        max_seconds=_SECONDS,
        trials_per_task=len(trials),
        tasks=(trials[0].task,),
        max_unreached_streak=_UNREACHED,
    )
    benchmark = Benchmark(simulator, protocol, parallel=1)
    clip = Clip(2, stride, simulator.control_hz, simulator.image_size, simulator.views)
    if way == "blind":
        results = benchmark.blind_floor(trials, clip)
    else:
        codec = ActionImageTokenizer() if way == "codec" else None
        expert = Expert(benchmark.simulator, stride, _SECONDS, None, codec)
        results = benchmark.run(expert, trials, clip)
        expert.close()
    benchmark.close()
    return sum(result.success for result in results)


if __name__ == "__main__":
    auto_cli(report, as_positional=False)
