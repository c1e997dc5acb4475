"""Simulators, each behind the contract `benchmarks.simulator.Simulator`."""
