"""Evaluation on recorded clips, sample videos, and the files of `ai-wam predict`."""
