"""`ai-wam compare`: two results of one protocol, trial by trial."""

from ai_wam.errors import InvalidValue
from benchmarks.evaluation.comparison import comparison_table
from benchmarks.evaluation.results import read_results


def compare(first: str, second: str) -> None:
    """Print the paired table of two results files.

    Args:
        first: a results.json, and
        second: another of the same protocol.
    """
    pair = read_results(first), read_results(second)
    try:
        print(comparison_table(*pair))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidValue(
            f"{first} or {second} is not as `ai-wam test` wrote it ({error!r}); give the original files, "
            "or test again"
        ) from error
