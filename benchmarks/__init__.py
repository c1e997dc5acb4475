"""Simulators, the evaluation protocol and its report."""
