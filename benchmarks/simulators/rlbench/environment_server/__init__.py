"""Simulators in interpreters of their own; every file here runs there: numpy, Python 3.10 or later."""
