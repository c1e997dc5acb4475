"""Shifts: what a test's scenes differ in from the training's, as parts of a protocol or of a collection."""

from benchmarks.shifts.shift import Shift
from benchmarks.shifts.shifted_simulator import ShiftedSimulator

__all__ = ["Shift", "ShiftedSimulator"]
