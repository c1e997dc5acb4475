"""Calibrations: camera files of several formats, lens distortion, and estimated cameras."""
