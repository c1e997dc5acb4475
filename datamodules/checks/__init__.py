"""Checks of recorded episodes: damage, implausible numbers, cameras, coverage of an epoch."""
