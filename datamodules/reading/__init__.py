"""Shared by the sources: reading pictures, text, videos, depth, rotations and restricted pickles."""
