"""`ai-wam compare`: two results of one protocol, or two sweeps over the same points, trial by trial."""

from pathlib import Path

from ai_wam.errors import InvalidValue
from benchmarks.evaluation.comparison import comparison_table
from benchmarks.evaluation.results import read_results
from benchmarks.evaluation.sweep import FILE
from benchmarks.evaluation.sweep_comparison import sweep_comparison


def compare(first: str, second: str) -> None:
    """Print the paired table of two results files.

    Args:
        first: a results.json or a sweep.json.
        second: another of the same protocol, or of the same points.
    """
    sweeps = [Path(path).name == FILE for path in (first, second)]
    if any(sweeps) and not all(sweeps):
        raise InvalidValue(
            f"{first} and {second}: one is a sweep, the other the results of one test; compare the sweep's "
            "point, whose results.json lies in the folder of its name"
        )
    try:
        if all(sweeps):
            print(sweep_comparison(Path(first), Path(second)))
        else:
            print(comparison_table(read_results(first), read_results(second)))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidValue(
            f"{first} or {second} is not as `ai-wam test` wrote it ({error!r}); give the original files, "
            "or test again"
        ) from error
