"""Measurements of speed, memory and accuracy: each file is a command that prints its own table."""
