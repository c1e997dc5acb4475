"""Recordings, trials and predictions as scenes in space and time, and a file of them for the Rerun viewer."""
