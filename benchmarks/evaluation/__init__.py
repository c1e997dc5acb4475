"""Closed-loop evaluation: protocol, trials, results, statistics and comparisons."""
