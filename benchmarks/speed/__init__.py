"""Benchmarks of speed and accuracy: each file prints its own table."""
