"""Worlds to act in, each behind `benchmarks.simulator.Simulator`."""
