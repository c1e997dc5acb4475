"""Calibrations: camera files of several kinds, lens distortion, and estimated cameras."""
