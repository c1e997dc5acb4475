"""Readers of foreign data sets, a file a format: each is an `ai_wam.episodes.EpisodeSource`."""
