"""`ai-wam compare`: two results of one protocol, trial by trial."""

from benchmarks.comparison import comparison_table
from benchmarks.results import read_results


def compare(first: str, second: str) -> None:
    """Print the paired table of two results files.

    Args:
        first: a results.json, and
        second: another of the same protocol.
    """
    print(comparison_table(read_results(first), read_results(second)))
