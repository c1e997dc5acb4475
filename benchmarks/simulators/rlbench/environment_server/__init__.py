"""The server of a simulator in an interpreter of its own; these files need Python 3.10 and numpy only."""
